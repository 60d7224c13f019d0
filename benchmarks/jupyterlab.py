"""A notebook in a real JupyterLab, in a browser without a screen: `python benchmarks/jupyterlab.py NOTEBOOK FOLDER` runs
all its cells, puts pictures of the page into FOLDER, and says what stands on a red ground. It needs a Chromium
(`CHROMIUM=/usr/bin/chromium`) and `pip install playwright`; llmft does not."""
import json, os, shutil, socket, subprocess, sys, tempfile, time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from playwright.sync_api import sync_playwright

SELECTORS = {
    'on a red ground': '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]',
    'errors': '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]',
    'bars': '.jp-OutputArea-output .widget-hprogress, .jp-OutputArea-output .jupyter-widgets progress',
    'broken widgets': '.jp-OutputArea-output:has-text("Error displaying widget")',
}
WAITING = '[...document.querySelectorAll(".jp-InputPrompt")].filter(e => e.textContent.includes("[*]")).length'


def start_lab(folder): # -> (process, address)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    python = os.environ.get('JUPYTER_PYTHON', sys.executable)
    command = [python, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--port={port}', f'--notebook-dir={folder}',
               '--IdentityProvider.token=', '--ServerApp.disable_check_xsrf=True']
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        try: urlopen(f'http://127.0.0.1:{port}/api').close()
        except (URLError, OSError): time.sleep(0.2)
        else: return process, f'http://127.0.0.1:{port}'
    raise SystemExit('JupyterLab did not start')


def texts(page, selector): return [e.inner_text().strip() for e in page.query_selector_all(selector)]


def run_all(page):
    page.wait_for_selector('.jp-Notebook .jp-CodeCell', timeout=120_000)
    page.wait_for_timeout(5000)
    if select := page.query_selector('.jp-Dialog button.jp-mod-accept'): select.click() # which kernel
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=120_000)
    page.click('.lm-MenuBar-itemLabel:text-is("Run")')
    page.click('li.lm-Menu-item[data-command="runmenu:run-all"]')
    page.wait_for_function(f'{WAITING} > 0', timeout=60_000)


def watch(page, pictures, limit):
    began, seen, last = time.time(), {name: set() for name in SELECTORS}, 0.0
    while True:
        for name, selector in SELECTORS.items(): seen[name].update(texts(page, selector))
        waiting = page.evaluate(WAITING)
        if time.time() - last > 20 or not waiting:
            last = time.time()
            page.screenshot(path=pictures/f'{last - began:06.0f}.png')
            print(f'{last - began:5.0f} s: {waiting} cells to go', flush=True)
        if not waiting or time.time() - began > limit: break
        time.sleep(0.5)
    return {'seconds': round(time.time() - began), 'cells left': waiting} | {k: sorted(v) for k, v in seen.items()}


def whole_pages(page, pictures): # pictures of the whole notebook, one screen after the other
    panel = page.query_selector('.jp-WindowedPanel-outer') or page.query_selector('.jp-Notebook')
    height = panel.evaluate('e => e.clientHeight')
    for i in range(60):
        panel.evaluate('(e, y) => e.scrollTop = y', i * (height - 60))
        time.sleep(0.7)
        page.screenshot(path=pictures/f'page_{i:02}.png')
        if panel.evaluate('e => e.scrollTop + e.clientHeight >= e.scrollHeight - 2'): break


def main(notebook, pictures, limit=3600):
    folder, pictures = Path(tempfile.mkdtemp()), Path(pictures)
    pictures.mkdir(parents=True, exist_ok=True)
    shutil.copy(notebook, folder/'notebook.ipynb')
    process, address = start_lab(folder)
    try:
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=os.environ.get('CHROMIUM'), args=['--no-sandbox'])
            page = browser.new_page(viewport={'width': 1200, 'height': 1000})
            page.goto(f'{address}/lab/tree/notebook.ipynb?reset')
            run_all(page)
            result = watch(page, pictures, limit)
            whole_pages(page, pictures)
            browser.close()
    finally: process.terminate()
    print(json.dumps(result, indent=1))
    return 1 if result['on a red ground'] or result['errors'] or result['cells left'] else 0


if __name__ == '__main__': sys.exit(main(*sys.argv[1:]))
