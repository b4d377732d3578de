// node.mjs PAGE [worker|isolate]: a page by Node's http server; rendered by itself, or by a worker or an isolate that is made for the
// request. Listens at $LISTEN, a port or a path.
import http from "node:http";
import { Worker } from "node:worker_threads";

const [page, way] = process.argv.slice(2);
const { render, type } = await import(`./${page}.mjs`);

const ways = {
  async itself() {
    return render();
  },
  worker() {
    return new Promise((resolve, reject) => {
      const worker = new Worker(new URL("./worker.mjs", import.meta.url), { argv: [page] });
      worker.once("message", resolve);
      worker.once("error", reject);
    });
  },
};
if (way === "isolate") {
  ways.isolate = (await import("./isolate.mjs")).isolates(page);
}
const answer = ways[way ?? "itself"];

http.createServer(async (_, response) => {
  try {
    response.setHeader("Content-Type", type);
    response.end(await answer());
  } catch (error) {
    response.statusCode = 500;
    response.end(String(error));
  }
}).listen(process.env.LISTEN ?? 8000);
