// What is random in Deno, a line each: its name and a value.
import { randomBytes } from "node:crypto";
const urandom = () => {
  const bytes = new Uint8Array(8);
  using file = Deno.openSync("/dev/urandom");
  file.readSync(bytes);
  return bytes.toHex();
};
const sources = {
  "/dev/urandom": urandom,
  "crypto.getRandomValues": () => crypto.getRandomValues(new Uint32Array(2)).join(""),
  "crypto.randomUUID": () => crypto.randomUUID(),
  "node:crypto's randomBytes": () => randomBytes(8).toString("hex"),
  "Math.random": () => Math.random(),
};
Deno.serve({ port: 8000 }, () => {
  const lines = Object.entries(sources).map(([name, source]) => `${name}\t${source()}\n`);
  return new Response(lines.join(""));
});
