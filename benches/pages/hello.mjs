export const type = "text/plain";

export function render() {
  return "Hello, World!\n";
}
