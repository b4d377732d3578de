// A page of a shop, of some 30 KB, that is made by the server and goes on in the browser.
import { createElement as h, useState } from "react";

function Counter() {
  const [clicks, setClicks] = useState(0);
  return h("button", { id: "button", onClick: () => setClicks(clicks + 1) }, `Clicked ${clicks} times`);
}

function Product({ number }) {
  return h(
    "li",
    { className: "product" },
    h("h3", null, `Product ${number}`),
    h("p", null, `Number ${number} of the shop, in stock, and sent within ${1 + (number % 5)} days.`),
    h("span", { className: "price" }, `${(number * 7) % 90}.99 €`),
  );
}

export function App({ rendered }) {
  const numbers = Array.from({ length: 205 }, (_, number) => number + 1);
  return h(
    "main",
    null,
    h("h1", null, "A shop"),
    h("p", { id: "rendered" }, `Rendered ${rendered} times`),
    h(Counter),
    h("ul", null, numbers.map((number) => h(Product, { key: number, number }))),
  );
}
