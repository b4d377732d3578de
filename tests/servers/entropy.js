// What is random in Node, a line each: its name and a value.
const http = require("http");
const crypto = require("crypto");
const sources = {
  "crypto.randomBytes": () => crypto.randomBytes(8).toString("hex"),
  "crypto.randomInt": () => crypto.randomInt(2 ** 47),
  "crypto.getRandomValues": () => crypto.webcrypto.getRandomValues(new Uint32Array(2)).join(""),
  "crypto.randomUUID({disableEntropyCache: true})": () => crypto.randomUUID({ disableEntropyCache: true }),
  "crypto.randomUUID()": () => crypto.randomUUID(),
  "Math.random": () => Math.random(),
};
http.createServer((request, response) => {
  const lines = Object.entries(sources).map(([name, source]) => `${name}\t${source()}\n`);
  response.end(lines.join(""));
}).listen(8000);
