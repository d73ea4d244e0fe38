"""A widget in the output of its cell: what a screen reader is told of it, and what stands in for it
once its kernel is gone.

ipywidgets leaves the handles of its sliders without a name, and bqplot its graphs: a script beside
them gives them one. ipywidgets looks for a widget for two seconds by the clock and never again, so
that a page which was at other work meanwhile misses one that has come: the script has it look once
more. A notebook that is opened again without the kernel that ran it has no widgets, so the next
output holds what stands in for them, out of sight while they are there.
"""

from __future__ import annotations

import ipywidgets as w
from IPython.display import DisplayHandle, display

from accel_lab.workbench.look import AT_NIGHT

VIEW = "application/vnd.jupyter.widget-view+json"

# ipywidgets marks an output of its own whose widgets are gone; otherwise what is in it is marked.
STYLE = f"""{AT_NIGHT}
:is(.accel-panel, .accel-ask, .accel-sliders) .noUi-handle {{
  border-color: var(--jp-ui-font-color2);
}}
.jp-OutputArea:not(.accel-no-charts) > .jp-OutputArea-child:has(> .accel-script)
  + :has(> .jp-OutputArea-output:not(.jupyter-widgets))
  + .jp-OutputArea-child {{
  display: none;
}}
/* Controls whose kernel was restarted: one sentence in place of a broken chain on each. */
:is(.accel-panel, .accel-ask, .accel-sliders) .jupyter-widgets-disconnected::before,
:is(.accel-panel, .accel-ask, .accel-sliders).jupyter-widgets-disconnected::before,
.jupyter-widgets-disconnected .accel-status {{
  display: none !important;
}}
.accel-no-charts .jupyter-widgets-error-widget {{ display: none; }}
.accel-gone {{ padding: 4px 14px; font-weight: 600; color: var(--jp-error-color0, #a00); }}"""

# Run before the widgets, which may come later than it, and again after the page was loaded anew;
# the output that it is run in is not on the page yet. A block, because what exports a notebook as a
# page runs all of its scripts as one.
SCRIPT = """{
element.innerHTML = `<style>STYLE</style>`;
element.classList.add("accel-script");
const patiently = ({ LabWidgetManager: { prototype: manager } }) => {
  const once = manager.get_model;
  if (Object.hasOwn(manager, "get_model")) return;
  manager.get_model = function (id) {
    const again = error => { if (this.has_model(id)) return once.call(this, id); throw error; };
    return once.call(this, id).catch(again);
  };
};
window._JUPYTERLAB?.["@jupyter-widgets/jupyterlab-manager"]?.get("./extension")
  .then(extension => patiently(extension())).catch(() => {});  // in another front end all is left
const GONE = "The kernel behind these controls has ended. "
  + "Run the notebook again to have them back.";
const NO_CHARTS = "This JupyterLab cannot draw the moving charts: bqplot is missing in the "
  + "environment that it runs in. The picture below is drawn anew whenever a run ends.";
const warn = (node, text) => {
  if (node.previousElementSibling?.matches(".accel-gone")) return;
  const said = Object.assign(document.createElement("div"), { className: "accel-gone" });
  said.setAttribute("role", "alert");
  said.textContent = text;
  node.before(said);
};
const say = (node, text) => { if (text) node.setAttribute("aria-label", text) };
const name = area => {
  for (const gone of area.querySelectorAll(".jp-OutputArea-output.jupyter-widgets")) {
    // a slow machine's widgets, come after all; in an exported page scripts stand there until then
    const came = gone.querySelector(":scope > :not(script, :empty)");
    if (came) gone.classList.remove("jupyter-widgets");
    else if (!gone.childElementCount && gone.textContent !== GONE) gone.textContent = GONE;
  }
  const lost = ":is(.accel-panel, .accel-ask, .accel-sliders).jupyter-widgets-disconnected";
  for (const dead of area.querySelectorAll(lost)) warn(dead, GONE);
  const broken = area.querySelector(".accel-panel .jupyter-widgets-error-widget");
  if (broken && !area.matches(".accel-no-charts")) {
    area.classList.add("accel-no-charts");
    warn(broken.closest(".accel-panel"), NO_CHARTS);
  }
  for (const part of area.querySelectorAll(":is(.noUi-handle, .widget-readout):not([aria-label])"))
    say(part, part.closest(".widget-inline-hbox")?.querySelector(".widget-label")?.textContent);
  const does = { "fa-play": "Play", "fa-pause": "Pause", "fa-stop": "Back to the start of" };
  for (const icon of area.querySelectorAll(".widget-play :is(.fa-play, .fa-pause, .fa-stop)")) {
    const what = icon.closest(".widget-play").parentElement.querySelector(".widget-label");
    say(icon.parentElement, `${does[icon.classList[1]]} ${what.textContent}`);
    icon.parentElement.title = icon.parentElement.ariaLabel;
  }
  for (const image of area.querySelectorAll(".accel-sliders img"))
    image.alt = image.closest(".accel-sliders").querySelector(".accel-said")?.textContent ?? "";
  for (const graph of area.querySelectorAll(".bqplot > svg:not([aria-label])")) {
    const axis = [...graph.querySelectorAll(".axislabel")].map(one => one.textContent).join(" ");
    const title = graph.closest(".widget-vbox")?.querySelector(".accel-title")?.textContent;
    if (title) {
      graph.setAttribute("role", "img");
      say(graph, axis ? `${title} over ${axis}` : title);
    }
  }
};
const begin = () => {
  const area = element.closest(".jp-OutputArea");
  if (!area) return void setTimeout(begin, 100);
  const all = { childList: true, subtree: true, attributes: true, attributeFilter: ["class"] };
  new MutationObserver(() => name(area)).observe(area, all);
  name(area);
  setTimeout(() => {  // where no kernel was started, ipywidgets would wait for one for ever
    for (const output of area.querySelectorAll(".jp-OutputArea-output"))
      if (output.textContent === "Loading widget...") output.classList.add("jupyter-widgets");
    name(area);
  }, 20000);
};
begin();
}""".replace("STYLE", STYLE)


def show(
    box: w.Widget, stand_in: dict[str, str], metadata: dict[str, str] | None = None
) -> DisplayHandle:
    """Show the widgets, and behind them the bundle that stands in for them, which the handle
    renews.
    """
    display({"application/javascript": SCRIPT}, raw=True)
    display({VIEW: box._repr_mimebundle_()[VIEW]}, raw=True)
    return display(stand_in, metadata=metadata, raw=True, display_id=True)
