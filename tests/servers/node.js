// Node's http server: counts what it is asked, and the bytes of a body. At /bytes/N there are N.
const http = require("http");
let count = 0;
http.createServer((request, response) => {
  if (request.url.startsWith("/bytes/")) {
    response.end("x".repeat(Number(request.url.slice(7))));
    return;
  }
  let bytes = 0;
  request.on("data", (piece) => (bytes += piece.length));
  request.on("end", () => response.end(`count ${++count} bytes ${bytes}\n`));
}).listen(8000);
