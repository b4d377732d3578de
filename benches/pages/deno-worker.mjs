// A worker that renders one page.
const { render } = await import(`./${import.meta.url.split("?")[1]}.mjs`);
postMessage(render());
