"""How a panel looks. Inks and grounds are JupyterLab's own, so that it follows its theme."""

STYLE = """<style>
.accel-panel {
  --bq-axis-tick-text-fill: var(--jp-ui-font-color1);
  --bq-axislabel-fill: var(--jp-ui-font-color1);
  --bq-axis-path-stroke: var(--jp-ui-font-color2);
  --bq-axis-tick-stroke: var(--jp-border-color2);
  --bq-background: transparent;
  --bq-plotarea-background-fill: transparent;
  border: 1px solid var(--jp-border-color2);
  border-radius: 6px;
  padding: 10px 14px;
}
.accel-panel .bqplot > svg { font: 12px var(--jp-ui-font-family); }
/* A line that a name lies on does not strike it through; what is black or white lies in a bar. */
.accel-panel .bqplot text.label:not([style*="fill: white"], [style*="fill: black"]) {
  paint-order: stroke;
  stroke: var(--jp-layout-color0, #fff);
  stroke-linejoin: round;
  stroke-width: 4px;
}
.accel-panel .bqplot text.axislabel { fill: var(--jp-ui-font-color1) !important; }
/* for WebGL; it keeps its width while its graph is out of sight */
.accel-panel .bqplot > canvas { display: none; }
.accel-controls :is(.widget-label, .widget-readout) { color: var(--jp-ui-font-color1); }
.accel-panel .widget-button.mod-success { background: #00664b; color: #fff; }
.accel-controls :is(button, .noUi-handle, input, select, .accel-legend):focus-visible {
  outline: 2px solid var(--jp-brand-color1);
  outline-offset: 1px;
}
.accel-controls .widget-box { overflow: visible; }
.accel-note { color: var(--jp-ui-font-color2); }
/* A note takes the room that is left, in two lines at most, and no row of its own: the charts would
   move out of sight. */
.accel-knob:has(.accel-error) { flex-wrap: wrap; }
.accel-knob .widget-html:has(.accel-note) {
  flex: 1 1 0;
  min-width: 0;
  container-type: inline-size;
}
@container (width < 6em) { .accel-note { visibility: hidden; } }
.accel-knob .widget-html-content:has(> .accel-note) {
  display: -webkit-box;
  align-self: center;
  overflow: hidden;
  line-height: 14px;
  -webkit-box-orient: vertical;
  -webkit-line-clamp: 2;
}
.accel-error { color: var(--jp-error-color0, #a00); font-weight: 600; }
.accel-controls .widget-readout { min-width: 5em; }
.accel-controls .widget-inline-hbox { margin: 2px; }
.accel-controls .widget-toggle-buttons {
  display: flex;
  flex-flow: row nowrap;
  align-items: baseline;
  height: auto;
}
.accel-controls .widget-toggle-buttons > .widget-label { text-align: right; margin-right: 12px; }
.accel-controls .widget-toggle-buttons > :is(.widget-button, div) { min-width: 0; flex-wrap: wrap; }
/* Play's third button leads back to the start: it looks so, and not like an end. */
.accel-sliders .widget-play .fa-stop::before { content: "\\f049"; }
/* for screen readers: what is in the picture now */
.accel-said { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; }
.accel-sliders > .widget-html { margin: 0; height: 0; overflow: hidden; }
/* One line, however long: what is below may not jump. What is cut off shows under the mouse. */
.accel-headline { font-size: 1.35em; font-weight: 600; line-height: 34px; }
.accel-headline { display: flex; align-items: baseline; }
.accel-headline > * { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
/* what is cut first */
.accel-headline small { flex-shrink: 1000; font-size: 0.75em; font-weight: normal; }
.accel-headline small { margin-left: 0.6em; }
.accel-status { font-variant-numeric: tabular-nums; }
.accel-title { font-weight: 600; }
/* These lie in a flex item, which would rather widen the panel than let them scroll or end. */
.accel-panel .widget-html-content:has(> :is(.accel-legend, .accel-headline)) { min-width: 0; }
.accel-legend { display: flex; overflow: auto hidden; scrollbar-width: thin; }
.accel-entry { margin-right: 1.4em; white-space: nowrap; }
/* Long names are cut before the row scrolls. */
.accel-legend .accel-entry { overflow: hidden; text-overflow: ellipsis; }
</style>"""
