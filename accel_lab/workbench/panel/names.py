"""What a screen reader is told. ipywidgets leaves the handles of its sliders without a name, and bqplot its graphs: they get one here."""

from IPython.display import Javascript, display

# Run beside the widgets, which may come later than it, and again after the page was loaded anew; the output that it is run in is
# not on the page yet.
SCRIPT = """
const say = (node, text) => { if (text) node.setAttribute("aria-label", text) };
const name = area => {
  for (const handle of area.querySelectorAll(".noUi-handle:not([aria-label])"))
    say(handle, handle.closest(".widget-inline-hbox")?.querySelector(".widget-label")?.textContent);
  for (const readout of area.querySelectorAll(".widget-readout:not([aria-label])"))
    say(readout, readout.closest(".widget-inline-hbox")?.querySelector(".widget-label")?.textContent);
  for (const graph of area.querySelectorAll(".bqplot > svg:not([aria-label])")) {
    const axes = [...graph.querySelectorAll(".axislabel")].map(label => label.textContent).filter(Boolean);
    if (axes.length === 2) { graph.setAttribute("role", "img"); say(graph, axes.reverse().join(" over ")) }
  }
};
const begin = () => {
  const area = element.closest(".jp-OutputArea");
  if (!area) return void setTimeout(begin, 100);
  new MutationObserver(() => name(area)).observe(area, { childList: true, subtree: true });
  name(area);
};
begin();
"""


def name_the_unnamed() -> None:
    """To be called where a cell shows widgets: looks after all of its outputs."""
    display(Javascript(SCRIPT))
