"The site: its map, and what Quarto is given. Quarto itself is not needed."
import json, re, subprocess, sys
import pytest
import yaml
from tests import figures, links
from tests.figures import is_exported
from tests.readme import ROOT, text
from tests.rendered import faults
from tests.test_imports import STANDS_ON

WINGS = [*STANDS_ON]


def site(): return yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))


def pages(contents):
    for entry in contents:
        if isinstance(entry, str): yield entry
        elif 'href' in entry: yield entry['href']
        else: yield from pages(entry['contents'])


def notebooks(): return sorted(path.relative_to(ROOT/'nbs').as_posix() for path in figures.notebooks())


def module_of(path):
    "The module that the notebook at `path` exports, by their names: `data/01_files.ipynb` -> `data.files`."
    return re.sub(r'\d+_', '', path.removesuffix('.ipynb')).replace('/', '.')


def cells(path): return json.loads((ROOT/path).read_text(encoding='utf-8'))['cells']


def output_texts(cell):
    "What the outputs of a cell say, pictures left out."
    for output in cell.get('outputs', []):
        if 'text' in output: yield text(output['text'])
        for kind, data in output.get('data', {}).items():
            if kind.startswith('text/'): yield text(data)


def test_sidebar_lists_every_notebook():
    assert sorted(pages(site()['website']['sidebar']['contents'])) == notebooks()


def test_map():
    website = site()['website']
    bar = [entry['text'] for entry in website['navbar']['left']]
    assert bar == ['Learn', 'How to', 'YAML keys', 'Commands', 'Python']
    assert all((ROOT/'nbs'/entry['href']).exists() for entry in website['navbar']['left'])
    sections = {entry['section']: entry['contents'] for entry in website['sidebar']['contents']}
    assert [*sections] == ['Start', 'Learn', 'The book: tuning well', 'How to', 'Reference', 'How it works',
                            'What comes with it']
    assert [wing['section'] for wing in sections['How it works']] == ['ground', *WINGS]


def test_address_is_the_one_of_the_settings():
    assert links.site() == (ROOT/'_quarto.yml').read_text(encoding='utf-8'), 'run `python -m tests.links`'


def test_files_of_the_site_are_there():
    website, html = site()['website'], site()['format']['html']
    for name in (website['favicon'], website['navbar']['logo'], html['css']): assert (ROOT/'nbs'/name).exists()


def test_width():
    html = site()['format']['html']
    assert html['code-overflow'] == 'wrap' and html['grid']['body-width'] == '1000px'
    assert 'pre-wrap' in (ROOT/'nbs/styles.css').read_text(encoding='utf-8') # for what is printed


@pytest.mark.parametrize('path', notebooks())
def test_stored_outputs(path):
    for cell in cells(f'nbs/{path}'):
        directives = re.findall(r'^#\| *([\w-]+)', text(cell['source']), re.M)
        picture = any(kind.startswith('image/') for o in cell.get('outputs', []) for kind in o.get('data', {}))
        assert not picture or {'fig-alt', 'hide'} & {*directives}, f'#{cell["id"]}: a picture without fig-alt'
        for shown in output_texts(cell):
            bad = re.search(r'/tmp/\w|__main__\.|IProgress|\w+Warning:|0%\|\s*\||\]\(/\w+\.html', shown)
            assert not bad, f'#{cell["id"]}: {shown[max(0, bad.start() - 60):bad.end() + 60]}'


@pytest.mark.parametrize('path', [p for p in notebooks() if p.split('/')[0] in WINGS])
def test_titles_of_how_it_works(path):
    title = text(cells(f'nbs/{path}')[0]['source']).split('\n')[0]
    assert re.fullmatch(rf'# [A-Z0-9].* · `llmft\.{re.escape(module_of(path))}`', title), title


# nbdev looks for its settings at each cell; read once, they take half of the time
PROCESS = '''
import sys
from functools import cache
import nbdev.config, nbdev.processors
nbdev.config._load_toml = cache(nbdev.config._load_toml)
if 'unexecuted' in sys.argv: nbdev.processors.exec_show_docs = type('exec_show_docs', (nbdev.processors.Processor,), {})
from nbdev.serve import proc_nbs
proc_nbs(n_workers=0, force=True)
'''

def process(*how):
    "What `nbdev-docs` does before Quarto: {page: its cells}."
    done = subprocess.run([sys.executable, '-c', PROCESS, *how], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return {path: cells(f'_proc/{path}') for path in notebooks()}


@pytest.fixture(scope='module')
def processed(): return process('unexecuted') # half of the time; what is shown of a signature is not made


@pytest.mark.slow
def test_signatures():
    "As nbdev does it: the exported cells and each cell with an import are run on their own."
    for path, found in process().items():
        for shown in (shown for cell in found if 'show_doc(' in text(cell['source']) for shown in output_texts(cell)):
            assert '__main__.' not in shown and '**data' not in shown, f'{path}: {shown[:200]}'
            assert len(shown) < 4000, f'{path}: {shown[:200]}' # no table as a default


def test_pages_begin_with_prose(processed):
    for path, found in processed.items():
        kinds = [c['cell_type'] for c in found if c['cell_type'] != 'raw' and not text(c['source']).startswith('<!--')]
        assert kinds[0] == 'markdown', path


def test_code_that_the_prose_explains_is_on_the_page(processed):
    for path, found in processed.items():
        exported = [c for c in cells(f'nbs/{path}') if c['cell_type'] == 'code' and is_exported(text(c['source']))]
        page = '\n'.join(text(c['source']) for c in found)
        for cell in exported:
            names = re.findall(r'^(?:def|class) (\w+)', text(cell['source']), re.M)
            assert all(re.search(rf'^(def|class) {name}\b', page, re.M) for name in names), f'{path} #{cell["id"]}'
        for cell in found: # nothing is exported unfolded, and no page opens with imports
            source = text(cell['source'])
            assert '#| export' not in source, path
            assert cell['cell_type'] != 'code' or not re.fullmatch(r'((from|import) [^\n]*\n?)+', source), path


def test_links_are_not_doubled(processed):
    "nbdev makes a link of each name in backticks, also inside a link."
    for path, found in processed.items():
        for cell in found:
            source = text(cell['source'])
            assert cell['cell_type'] != 'markdown' or '[[`' not in source, f'{path}: {source[:200]}'


def test_links_lead_somewhere():
    for path in notebooks():
        for cell in cells(f'nbs/{path}'):
            if cell['cell_type'] != 'markdown': continue
            for target in re.findall(r'\]\(([^)\s:#]+\.(?:ipynb|svg|png|md))', text(cell['source'])):
                assert (ROOT/'nbs'/path).parent.joinpath(target).exists(), f'{path}: {target}'


REFERENCE = sorted((ROOT/'nbs/reference').glob('*.ipynb'))
RUN = '''
import sys
from pathlib import Path
from execnb.shell import CaptureShell
for page in map(Path, sys.argv[2:]): CaptureShell().execute(page, Path(sys.argv[1])/page.name, exc_stop=True)
'''

@pytest.fixture(scope='module')
def executed(tmp_path_factory):
    "The folder of the reference pages as they are when they are run, each in a shell of its own, in one process."
    folder = tmp_path_factory.mktemp('reference')
    done = subprocess.run([sys.executable, '-c', RUN, folder, *REFERENCE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize('path', REFERENCE, ids=lambda p: p.stem)
def test_reference_pages_are_as_the_code_says(path, executed):
    fresh, stored = ([list(output_texts(cell)) for cell in cells(p)] for p in (executed/path.name, path))
    assert fresh == stored, f'run nbdev-test --save {path.relative_to(ROOT)}'


def test_rendered_pages_are_looked_through(tmp_path):
    (tmp_path/'a').mkdir()
    targets = ['a/b.html#x', 'a/b.html#y', '/c.html', 'https://example.org', '#top']
    links = ''.join(f'<a href="{target}"></a>' for target in targets)
    (tmp_path/'index.html').write_text(f'<h1 id="top"></h1>{links}<img src="p.png" alt="a picture">')
    (tmp_path/'a'/'b.html').write_text('<p id="x"></p><a href="../index.html"></a><img src="q.png">')
    assert list(faults(tmp_path)) == [
        'a/b.html: a picture without a text: q.png', 'index.html: a/b.html#y has no such anchor',
        'index.html: /c.html leads nowhere']
