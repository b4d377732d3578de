// A page rendered by an isolate of its own for each request, out of a snapshot that has the page's code and React in it.
import { readFileSync } from "node:fs";
import ivm from "isolated-vm";

export function isolates(page) {
  const code = readFileSync(new URL(`./bundles/${page}.js`, import.meta.url), "utf8");
  const snapshot = ivm.Isolate.createSnapshot([{ code }]);
  return async () => {
    const isolate = new ivm.Isolate({ snapshot, memoryLimit: 64 });
    try {
      const context = await isolate.createContext();
      return await context.eval("page.render()");
    } finally {
      isolate.dispose();
    }
  };
}
