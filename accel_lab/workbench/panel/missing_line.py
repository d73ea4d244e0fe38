"""A function with one line left out: the reader chooses it, and what was chosen is run and judged.

A completion problem: of a worked solution the step that matters is left to the learner (van
Merriënboer & Krammer 1987, "Instructional strategies and tactics for the design of introductory
computer programming courses in high school", Instructional Science 16).
"""

from __future__ import annotations
import __future__

import inspect
from collections.abc import Callable, Mapping
from html import escape
from typing import Any
from zlib import crc32

import ipywidgets as w
from IPython.display import display

from accel_lab.workbench.look import badge
from accel_lab.workbench.measure.proof import Proof
from accel_lab.workbench.notebook.source import show_source
from accel_lab.workbench.panel.output import show
from accel_lab.workbench.watched import someone_watches

QUESTION = "Which line is missing? What you choose is run."
GAP = "________"
STYLE = """<style>
.accel-line .widget-radio, .accel-line .widget-radio-box { width: auto; height: auto; }
.accel-line .widget-radio-box label {
  font-family: var(--jp-code-font-family, monospace); font-size: var(--jp-code-font-size, 13px);
  line-height: 1.5; white-space: pre-wrap; width: auto; max-width: none; height: auto;
  display: grid; grid-template-columns: 13px 1fr; column-gap: 6px;  /* no line below the button */
}
.accel-line [role="status"] span { display: inline-block; line-height: 1.5; }
.accel-line .widget-radio-box input { grid-area: 1 / 1; align-self: start; margin: 0; }
</style>"""


class MissingLine:
    """Put last in a cell: the source of ``function`` without one line, and what may stand there.

    choices: line of code → what it does, in one sentence; one of them is the function's own,
    without its comment · judge: called with the function as it reads with the line that was chosen,
    says whether it does what it should: by a proof, by what came and what should have come, which
    are shown, or by yes or no. What it raises counts as no.
    Where nobody watches, all are tried at once. Raises ValueError, one line, unless exactly the
    function's own line is judged right; or for a function that cannot be rebuilt from its source.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        choices: Mapping[str, str],
        judge: Callable[[Callable[..., Any]], Proof | tuple[object, object] | bool],
    ):
        self._function, self._choices, self._judge = function, choices, judge
        self._lines = show_source(function, docstring=False).text.splitlines()
        if function.__code__.co_freevars:
            raise ValueError(f"missing line: {function.__name__} uses names around its definition")
        own = [at for at, line in enumerate(self._lines) if _code(line) in choices]
        if len(own) != 1:
            raise ValueError(
                f"missing line: {len(own)} lines of {function.__name__} are among the choices "
                "instead of one"
            )
        self._at = own[0]
        self.right = _code(self._lines[self._at])
        if someone_watches():
            self._build()
        elif (found := [line for line in choices if self.try_(line)[0]]) != [self.right]:
            raise ValueError(
                f"missing line: judged right in {function.__name__}: {', '.join(found) or 'none'}; "
                f"it should be {self.right} alone, of which is said: {self.try_(self.right)[1]}"
            )

    @property
    def order(self) -> list[str]:
        """The choices as they are listed: the place of the right one says nothing."""
        return sorted(self._choices, key=lambda line: crc32(line.encode()))

    def with_line(self, line: str) -> str:
        """The function's source with ``line`` where its own stood."""
        own = self._lines[self._at]
        indent = own[: len(own) - len(own.lstrip())]
        return "\n".join((*self._lines[: self._at], indent + line, *self._lines[self._at + 1 :]))

    def try_(self, line: str) -> tuple[bool, str]:
        """Run the function with ``line``: whether it is judged right, and what was seen (HTML)."""
        try:
            said = self._judge(self._rebuilt(line))
        except Exception as error:  # whatever a wrong line leads to
            reason = (str(error).splitlines() or [""])[0]
            return False, badge(False, f"it raises {type(error).__name__}: {reason}")
        if isinstance(said, Proof):
            return said.holds, said._repr_html_()
        if isinstance(said, tuple):
            came, wanted = said
            beside = "" if came == wanted else f", and not {wanted}"
            return came == wanted, badge(came == wanted, f"what comes is {came}{beside}")
        words = "it does what it should" if said else "it does not do what it should"
        return bool(said), badge(bool(said), words)

    def _rebuilt(self, line: str) -> Callable[..., Any]:
        code = compile(
            self.with_line(line),
            inspect.getsourcefile(self._function) or "<cell>",
            "exec",
            flags=__future__.annotations.compiler_flag,
            dont_inherit=True,
        )
        names = dict(self._function.__globals__)
        exec(code, names)  # the course's own code, and one of the lines of a chapter
        return names[self._function.__name__]

    def _build(self) -> None:
        self._radio = w.RadioButtons(options=self.order, value=None, layout={"width": "auto"})
        self._radio.observe(lambda change: self._chosen(change["new"]), "value")
        self._note = w.HTML()
        self.box = w.VBox([w.HTML(f"{STYLE}<b>{QUESTION}</b>"), self._radio, self._note])
        self.box.add_class("accel-ask")
        self.box.add_class("accel-line")

    def _chosen(self, line: str | None) -> None:
        if line is None:
            return
        self._note.value = "running it …"
        seen, does = self.try_(line)[1], escape(self._choices[line])
        self._note.value = f'<div role="status"><div>{seen}</div>{does}</div>'

    def _ipython_display_(self) -> None:
        with_gap = self.with_line(GAP)
        whole = "\n".join(self._lines)
        display(_markdown(f"```python\n{with_gap}\n```", with_gap), raw=True)
        listed = "\n".join(f"- `{line}`" for line in self.order)
        if someone_watches():
            items = "".join(f"<li><code>{escape(line)}</code></li>" for line in self.order)
            show(self.box, {"text/html": f"<b>{QUESTION}</b><ul>{items}</ul>"})
        else:
            display(_markdown(f"**{QUESTION}**\n\n{listed}", f"{QUESTION}\n{listed}"), raw=True)
        fold = f"<details><summary>The whole function</summary>\n\n```python\n{whole}\n```\n\n"
        display(_markdown(f"{fold}</details>", "(the whole function is folded here)"), raw=True)


def _code(line: str) -> str:
    """Without its comment; lines of the course hold no # in a string."""
    return line.split("  #")[0].strip()


def _markdown(text: str, plain: str) -> dict[str, str]:
    return {"text/markdown": text, "text/plain": plain}
