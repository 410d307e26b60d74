// What scrolls sideways can be reached and scrolled with the keyboard.
const reach = () => {
  for (const box of document.querySelectorAll(".scroll, pre")) {
    const scrolls = box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight;
    box.toggleAttribute("tabindex", scrolls);
    if (scrolls) box.tabIndex = 0;
  }
};
new ResizeObserver(reach).observe(document.body);
document.addEventListener("toggle", reach, true);
