// A worker that renders one page and ends.
import { parentPort } from "node:worker_threads";

const { render } = await import(`./${process.argv[2]}.mjs`);
parentPort.postMessage(render());
