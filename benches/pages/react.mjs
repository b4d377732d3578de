// A shop's page, rendered by React: some 30 KB of HTML, by components and hooks as pages have them.
import { createContext, createElement as h, useContext, useMemo } from "react";
import { renderToString } from "react-dom/server";

export const type = "text/html; charset=utf-8";

const PRODUCTS = Array.from({ length: 90 }, (_, index) => ({
  id: index + 1,
  name: `Product ${index + 1}`,
  about: "Made by hand of oak & steel; <delivered> within three days, or your money back.",
  cents: 995 + index * 137,
  stars: 1 + (index * 7) % 5,
  stock: (index * 13) % 29,
}));

const Currency = createContext("EUR");

function Price({ cents }) {
  const currency = useContext(Currency);
  return h("span", { className: "price" }, `${(cents / 100).toFixed(2)} ${currency}`);
}

function Stars({ count }) {
  return h("span", { className: "stars", "aria-label": `${count} of 5 stars` }, "★★★★★☆☆☆☆☆".slice(5 - count, 10 - count));
}

function Product({ product }) {
  return h("li", { className: product.stock ? "product" : "product gone", "data-id": product.id },
    h("a", { href: `/products/${product.id}` }, h("h2", null, product.name)),
    h("p", null, product.about),
    h(Stars, { count: product.stars }),
    h(Price, { cents: product.cents }),
    h("button", { disabled: !product.stock, style: { marginLeft: 8 } }, product.stock ? "Add to cart" : "Sold out"));
}

function Navigation() {
  const names = ["Home", "Tables", "Chairs", "Lamps", "Shelves", "About"];
  return h("nav", null, h("ul", null, names.map((name) => h("li", { key: name }, h("a", { href: `/${name.toLowerCase()}` }, name)))));
}

function Page() {
  const products = useMemo(() => [...PRODUCTS].sort((a, b) => b.stars - a.stars), []);
  return h("html", { lang: "en" },
    h("head", null, h("meta", { charSet: "utf-8" }), h("title", null, "A shop"), h("link", { rel: "stylesheet", href: "/shop.css" })),
    h("body", null,
      h("header", null, h("h1", null, "A shop"), h(Navigation)),
      h("main", null, h("p", null, `${products.length} products, ${products.filter((p) => p.stock).length} in stock`),
        h("ul", { className: "products" }, products.map((product) => h(Product, { key: product.id, product })))),
      h("footer", null, "© A shop")));
}

export function render() {
  return `<!doctype html>${renderToString(h(Currency.Provider, { value: "EUR" }, h(Page)))}`;
}
