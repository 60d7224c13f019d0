"What the pages for users promise: they open and run as they are, and take everything from `llmft`."
import ast, json, re, subprocess
from pathlib import Path
import pytest
import llmft
from tests import glossary
from tests.__main__ import nbdev
from tests.links import BUTTONS, INSTALL, outdated, pages, repository

ROOT, NBS = Path(__file__).parent.parent, Path(__file__).parent.parent/'nbs'
LEARN = sorted((NBS/'tutorials').glob('[0-9]*.ipynb'))
USER_PAGES = [*pages(), NBS/'index.ipynb']
IMAGES = {'image/png', 'image/svg+xml', 'image/jpeg'}


def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']
def source(cell): return ''.join(cell['source'])
def name(path): return path.relative_to(NBS).as_posix()


def code(path):
    "The code of a page that Python can parse; the install cell has lines of IPython."
    return [source(c) for c in cells(path) if c['cell_type'] == 'code' and c['id'] != INSTALL]


def prose(path):
    "The Markdown of a page, without what stands in fences."
    text = '\n\n'.join(source(c) for c in cells(path) if c['cell_type'] == 'markdown')
    return re.sub(r'^(`{3,})[^\n]*\n.*?^\1$', '', text, flags=re.M | re.S)


def test_the_course_is_numbered_and_each_page_leads_to_the_next():
    assert [p.name[:2] for p in LEARN] == ['00', '01', '02', '03', '04', '05', '06']
    for n, (page, after) in enumerate(zip(LEARN, LEARN[1:])):
        assert source(cells(page)[0]).startswith(f'# {n}. ')
        assert re.search(rf'\*\*Next:\*\* \[[^\]]+\]\({re.escape(after.name)}\)', source(cells(page)[-1])), page.name


def test_buttons_and_install_cells_are_as_tests_links_writes_them():
    assert not outdated(), f'run `python -m tests.links`: {[name(p) for p in outdated()]}'


@pytest.mark.parametrize('path', pages(), ids=name)
def test_opens_in_colab_and_kaggle_and_begins_with_the_install_cell(path):
    found = cells(path)
    assert source(found[0]).startswith('# ') and found[1]['id'] == BUTTONS
    assert f'/blob/main/nbs/{name(path)})' in source(found[1]) and repository() in source(found[1])
    assert next(c for c in found if c['cell_type'] == 'code')['id'] == INSTALL


def test_the_install_cell_does_nothing_where_llmft_is_and_python_can_read_the_rest():
    from IPython.core.inputtransformer2 import TransformerManager
    for path in pages():
        text = next(source(c) for c in cells(path) if c['id'] == INSTALL)
        tree = ast.parse(TransformerManager().transform_cell(text))
        assert [type(node) for node in tree.body] == [ast.Try] and ast.unparse(tree.body[0].body) == 'import llmft'
        assert [ast.unparse(handler.type) for handler in tree.body[0].handlers] == ['ImportError']


@pytest.mark.parametrize('path', USER_PAGES, ids=name)
def test_imports_of_llmft_are_its_public_names(path):
    for text in code(path):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import): assert not any(a.name.startswith('llmft') for a in node.names), text
            if isinstance(node, ast.ImportFrom) and node.module.startswith('llmft'):
                assert node.module == 'llmft' and {a.name for a in node.names} <= {*llmft.__all__}, text


@pytest.mark.parametrize('path', [*USER_PAGES, *(NBS/'builtin').glob('*.ipynb')], ids=name)
def test_stored_outputs_hold_nothing_of_this_machine(path):
    assert path.stat().st_size < 100 * 1024
    for cell in cells(path):
        outputs = cell.get('outputs', [])
        if any(IMAGES & {*o.get('data', {})} for o in outputs):
            assert re.match(r'(#\|.*\n)*#\| fig-alt: ".+"', source(cell)), source(cell)
        for output in outputs:
            assert output['output_type'] != 'error' and output.get('name') != 'stderr', source(cell)
            shown = {kind: value for kind, value in output.get('data', {}).items() if kind not in IMAGES}
            text = json.dumps(shown or output.get('text', ''))
            for word in ('/tmp/', '__main__.', 'IProgress', 'Warning:', 'it/s]'):
                assert word not in text, (word, source(cell))


@pytest.mark.parametrize('path', USER_PAGES, ids=name)
def test_lines_can_be_read_without_scrolling(path):
    for cell in cells(path):
        text = source(cell)
        if cell['cell_type'] == 'code':
            assert not [line for line in text.splitlines() if len(line) > 120 and not line.startswith('#|')]
            continue
        for language, body in re.findall(r'^`{3,}(\w*)\n(.*?)^`{3,}$', text, re.M | re.S):
            for line in body.splitlines():
                assert len(line) <= 88, line
                # a comment has a line of its own
                assert language != 'sh' or line.startswith('#') or ' # ' not in line, line


def anchors(path):
    "Where a link can point to on a page."
    heads = re.findall(r'^#{1,6} +(.+)$', prose(path), re.M)
    return {re.sub(r'\s+', '-', re.sub(r'[^\w\s-]', '', head.lower()).strip()) for head in heads}


@pytest.mark.parametrize('path', USER_PAGES, ids=name)
def test_links_lead_somewhere(path):
    text = prose(path)
    assert not re.search(r'!\[\]\(', text) # each picture has words in its place
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if re.match(r'[a-z]+:', target): continue
        file, _, anchor = target.partition('#')
        page = (path.parent/file).resolve() if file else path
        assert page.is_file(), target
        if anchor: assert anchor in anchors(page), target


@pytest.mark.parametrize('path', glossary.pages(), ids=name)
def test_words_of_the_glossary_are_linked_at_their_first_use_and_nowhere_else(path):
    assert not glossary.unlinked(path), f'run `python -m tests.glossary {path.relative_to(ROOT)}` and read what it did'


def test_a_word_without_a_link_is_found_and_only_in_running_text():
    assert {*glossary.WORDS} <= anchors(glossary.GLOSSARY)
    def missing(*texts): return {word for _, _, word in glossary.first_uses(dict(enumerate(texts)))[0].values()}
    assert missing('The loss of a packed row.', 'Loss again.') == {'loss', 'packed'}
    assert missing('# The loss\n\n`loss` ![a loss](x.png) [the loss](y.ipynb)\n\n| loss |\n') == set()
    assert missing('> A loss\n\n## Exercises\n\n1. Which loss?', 'The loss.') == set()
    link = '[loss](glossary.ipynb#loss)'
    assert missing(f'The {link} is a loss.') == set() and missing(f'The loss, {link}.') == {'loss'}
    assert glossary.first_uses({0: f'A {link}.', 1: f'A {link}.'})[1] == [(1, 'loss', link)]


def exercises(path): return prose(path).partition('## Exercises')[2]


@pytest.mark.parametrize('path', LEARN[1:], ids=name)
def test_tutorials_have_exercises_with_hidden_solutions(path):
    text = exercises(path)
    questions = re.findall(r'^\d\. .+', text, re.M)
    assert 2 <= len(questions) <= 3
    assert text.count('<details><summary>Answer</summary>') == text.count('</details>') == len(questions)


@pytest.mark.parametrize('path', [p for p in glossary.pages() if p != LEARN[0]], ids=name) # the first is to be read
def test_a_page_says_at_its_top_how_long_it_takes(path):
    found = cells(path)
    top = '\n'.join(map(source, found[:[c['id'] for c in found].index(INSTALL)]))
    assert re.search(r'\b(cores?|CPU)\b', top) and re.search(r'T4: (not )?measured', top)


FEWER = {'split: train[:200]': 'split: train[:8]', 'split: heldout[50:]': 'split: heldout[79:81]'}

def test_the_first_tutorial_runs_with_fewer_rows(tmp_path):
    "As it stands it trains and answers for minutes, longer than any other page; `nbdev-test` runs that."
    text = LEARN[1].read_text(encoding='utf-8')
    for as_it_stands, fewer in FEWER.items():
        assert text.count(as_it_stands) == 1
        text = text.replace(as_it_stands, fewer)
    page = tmp_path/LEARN[1].name
    page.write_text(text, encoding='utf-8')
    done = subprocess.run([nbdev('test'), page], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
