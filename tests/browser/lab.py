"""A real JupyterLab and a page of it in Chromium."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page

CHROMIUM = "/usr/bin/chromium"
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}
# What only the tests' environment brings along: a reader's JupyterLab has none of their menus and
# buttons.
STRANGERS = ("@jupyter/nbgrader", "@jupyter-notebook/lab-extension", "jupyterlab-jupytext")
STRANGE_SERVERS = (
    *(
        f"nbgrader.server_extensions.{part}"
        for part in ("assignment_list", "course_list", "formgrader", "validate_assignment")
    ),
    *("notebook", "jupyterlab_jupytext"),
)
PAGE_CONFIG = "config/labconfig/page_config.json"
CONFIG = {
    "config/jupyter_server_config.json": {
        "ServerApp": {"jpserver_extensions": dict.fromkeys(STRANGE_SERVERS, False)}
    }
}


@contextlib.contextmanager
def jupyter_lab(
    root: Path, home: Path, settings: dict | None = None, without: Iterable[str] = ()
) -> Iterator[str]:
    """Serve ``root`` on a free port of 127.0.0.1, everything it writes under ``home``; yields its
    address with the token. without: extensions that it is to lack.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    wanted = {
        f"settings/{name}.jupyterlab-settings": value
        for name, value in (SETTINGS | (settings or {})).items()
    }
    disabled = {"disabledExtensions": dict.fromkeys((*STRANGERS, *without), True)}
    for name, value in (CONFIG | wanted | {PAGE_CONFIG: disabled}).items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    places = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    env = {f"JUPYTER_{name}": str(home / place) for name, place in places.items()}
    env |= {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
    ]
    command += [
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={root}",
    ]
    command += ["--expose-app-in-browser"]
    with (home / "lab.log").open("w") as log:
        server = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | env,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_it_answers(server, f"{address}/api/status?token={token}", home / "lab.log")
        yield f"{address}/lab/tree/{{path}}?token={token}&reset"
    finally:
        server.send_signal(signal.SIGTERM)  # ends the kernels too, and asks nothing
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def _wait_until_it_answers(server: subprocess.Popen, status: str, log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"JupyterLab ended at once:\n{log.read_text()[-3000:]}")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(status, timeout=2).read()
            return
        time.sleep(0.2)
    raise TimeoutError(f"JupyterLab did not answer within a minute:\n{log.read_text()[-3000:]}")


def open_notebook(page: Page, lab: str, path: str) -> None:
    """Open a notebook and wait for its kernel."""
    page.goto(lab.format(path=path))
    page.wait_for_function("() => window.jupyterapp && window.jupyterapp.restored", timeout=60_000)
    page.evaluate("async () => { await window.jupyterapp.restored }")
    page.locator(".jp-NotebookPanel:visible .jp-Notebook").wait_for(timeout=60_000)
    page.wait_for_function(
        """() => { const context = window.jupyterapp.shell.currentWidget?.sessionContext;
                   return context?.isReady && context.session?.kernel?.status === 'idle' }""",
        timeout=60_000,
    )


def close_and_open(page: Page) -> None:
    """Close the notebook's tab, whose kernel goes on, and open the notebook again."""
    path = page.evaluate("() => window.jupyterapp.shell.currentWidget.context.path")
    page.evaluate("() => window.jupyterapp.shell.currentWidget.close()")
    page.locator(".jp-NotebookPanel").wait_for(state="detached")
    page.evaluate(
        "async path => { await window.jupyterapp.commands.execute('docmanager:open', { path }) }",
        path,
    )
    page.locator(".jp-NotebookPanel:visible .jp-Notebook").wait_for(timeout=60_000)


def at_other_work(page: Page, milliseconds: int) -> None:
    """From its next loading on, the page is kept busy for so long when its widgets come."""
    script = """window.WebSocket = class extends WebSocket {
        constructor(...given) {
            super(...given);
            this.addEventListener('message', ({ data }) => {
                const text = data.byteLength ? new TextDecoder('latin1').decode(data) : '';
                const end = Date.now() + (text.includes('update_states') ? MILLISECONDS : 0);
                while (Date.now() < end); }) } }"""
    page.add_init_script(script.replace("MILLISECONDS", str(milliseconds)))


def run_all(page: Page, timeout: float = 300) -> None:
    """Run all cells and wait until the last one has ended."""
    page.evaluate(
        """() => {
            window.__ran = false;
            const ended = window.jupyterapp.commands.execute('notebook:run-all-cells');
            ended.then(() => { window.__ran = true }) }"""
    )
    page.wait_for_function("() => window.__ran", timeout=timeout * 1000)


def run_cell(page: Page, text: str, above: bool = False) -> None:
    """Run the first cell that holds this text, and before it all ``above`` it if so wished; wait
    until it has ended.
    """
    page.evaluate(
        """async ([text, above]) => {
            const notebook = window.jupyterapp.shell.currentWidget.content;
            const holds = cell => cell.model.sharedModel.getSource().includes(text);
            const choose = () => { notebook.activeCellIndex = notebook.widgets.findIndex(holds) };
            choose();
            if (above) await window.jupyterapp.commands.execute('notebook:run-all-above');
            choose();
            await window.jupyterapp.commands.execute('notebook:run-cell') }""",
        [text, above],
    )


def ask_kernel(page: Page, code: str) -> str:
    """What the code prints, run beside the notebook's cells."""
    return page.evaluate(
        """async (code) => {
            const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const request = kernel.requestExecute({code});
            let heard = '';
            request.onIOPub = message => {
                if (message.header.msg_type === 'stream') heard += message.content.text };
            await request.done;
            return heard }""",
        code,
    )


def picture(locator: Locator) -> str:
    """What can be seen of it, as a fingerprint."""
    return hashlib.sha1(locator.screenshot()).hexdigest()


def barriers(page: Page, within: str = ".accel-panel") -> list[str]:
    """What axe-core finds there that keeps somebody out: serious and critical violations."""
    found = Axe().run(page, context=within).response["violations"]
    return [
        f"{one['id']}: {node['html']}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@contextlib.contextmanager
def theme(page: Page, name: str) -> Iterator[None]:
    """Everything in this theme of JupyterLab's, the light one again afterwards: the setting
    outlives the page.
    """
    change = """async (theme) => {
        await window.jupyterapp.commands.execute('apputils:change-theme', {theme});
        while (document.body.dataset.jpThemeName !== theme)
            await new Promise(resolve => setTimeout(resolve, 50)) }"""
    page.evaluate(change, name)
    try:
        yield
    finally:
        page.evaluate(change, "JupyterLab Light")


def save(page: Page) -> None:
    page.evaluate("async () => { await window.jupyterapp.commands.execute('docmanager:save') }")


def trust(page: Page) -> None:
    """As if the reader had run every cell."""
    page.evaluate(
        "() => { for (const cell of window.jupyterapp.shell.currentWidget.content.model.cells) "
        "cell.trusted = true }"
    )


def restart_kernel(page: Page) -> None:
    page.evaluate(
        "async () => { await window.jupyterapp.shell.currentWidget.sessionContext.session.kernel"
        ".restart() }"
    )


def end_kernels(page: Page) -> None:
    """End all kernels of this page's JupyterLab, whatever they are doing: memory and cores are for
    the next one.
    """
    page.evaluate("async () => { await window.jupyterapp?.serviceManager.sessions.shutdownAll() }")
