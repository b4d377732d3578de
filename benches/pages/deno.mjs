// deno.mjs PAGE [worker]: a page by Deno.serve; rendered by itself, or by a worker, which is an isolate of its own, that is made for the
// request. Listens at $LISTEN, a port or a path.
const [page, way] = Deno.args;
const { render, type } = await import(`./${page}.mjs`);

function worker() {
  return new Promise((resolve, reject) => {
    const url = new URL(`./deno-worker.mjs?${page}`, import.meta.url);
    const worker = new Worker(url, { type: "module" });
    worker.onmessage = (event) => {
      worker.terminate();
      resolve(event.data);
    };
    worker.onerror = reject;
  });
}

const answer = way === "worker" ? worker : () => render();
const listen = Deno.env.get("LISTEN") ?? "8000";
const where = listen.startsWith("/") ? { path: listen } : { port: Number(listen) };
Deno.serve({ ...where, onListen() {} }, async () => new Response(await answer(), { headers: { "Content-Type": type } }));
