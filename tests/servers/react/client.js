// Takes the page over in the browser.
import { createElement as h } from "react";
import { hydrateRoot } from "react-dom/client";
import { App } from "./app.js";

const rendered = Number(document.currentScript.dataset.rendered);
const errors = [];
const note = (error) => {
  errors.push(String(error));
  document.documentElement.dataset.errors = errors.join("; ");
};
hydrateRoot(document.getElementById("root"), h(App, { rendered }), {
  onRecoverableError: note,
  onUncaughtError: note,
});
document.documentElement.dataset.hydrated = "true";
