"""The buttons and the first code cell of every tutorial and how-to: `python -m tests.links` writes them.

The one address is `Repository` in pyproject.toml; `_quarto.yml` gets it too. Each page gets, below its title, buttons
that open it in Colab and in Kaggle, and as its first code cell one that installs llmft where it is missing.
"""
import json, re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FIRST = 'nbs/tutorials/01_first_finetune.ipynb'
BUTTONS, INSTALL = 'buttons', 'install' # ids of the two cells

_INSTALL = '''\
# Installs llmft where it is missing, as on Colab and Kaggle, and does nothing elsewhere.
# Their PyTorch stays. An old torchao, beside which peft refuses to work, is removed.
try: import llmft
except ImportError:
    %pip install -q "llmft @ git+{repository}"
    from importlib.metadata import distributions
    if any([*map(int, d.version.split('.')[:2])] < [0, 16] for d in distributions(name='torchao')):
        %pip uninstall -q -y torchao
'''

# a page that is made from the tests needs the whole repository
_CLONE = '''\
# Fetches llmft where it is missing, as on Colab and Kaggle, and does nothing elsewhere.
# This page also uses its tests. PyTorch stays; an old torchao, beside which peft refuses to work, is removed.
try: import llmft
except ImportError:
    !git clone -q --depth 1 {repository}
    %cd -q {name}
    %pip install -q .
    from importlib.metadata import distributions
    if any([*map(int, d.version.split('.')[:2])] < [0, 16] for d in distributions(name='torchao')):
        %pip uninstall -q -y torchao
'''


def repository():
    "The address of the repository."
    settings = (ROOT/'pyproject.toml').read_text(encoding='utf-8')
    return re.search(r'^Repository = "([^"]+)"', settings, re.M)[1].rstrip('/')


def pages():
    "The notebooks that have buttons and an install cell."
    return sorted(p for folder in ('tutorials', 'how_to', 'book') for p in (ROOT/'nbs'/folder).glob('*.ipynb'))


def buttons(page):
    "Markdown: two pictures that open `page`, a path in the repository, in Colab and in Kaggle."
    blob = f'blob/main/{page}'
    colab = f'https://colab.research.google.com/{repository().replace("https://github.com", "github")}/{blob}'
    kaggle = f'https://kaggle.com/kernels/welcome?src={repository()}/{blob}'
    return (f'[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})\n'
            f'[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]({kaggle})')


def install(cells):
    "The first code cell of a page with these cells."
    code = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'code')
    text = _CLONE if re.search(r'^(?:from|import) tests\b', code, re.M) else _INSTALL
    return text.format(repository=repository(), name=repository().split('/')[-1]).strip()


def cell(kind, id, text):
    code = {'execution_count': None, 'outputs': []} if kind == 'code' else {}
    return {'cell_type': kind, 'id': id, 'metadata': {}, **code, 'source': text.splitlines(keepends=True)}


def linked(path):
    "The notebook at `path` with its buttons and its install cell as they have to be."
    notebook = json.loads(path.read_text(encoding='utf-8'))
    cells = [c for c in notebook['cells'] if c['id'] not in (BUTTONS, INSTALL)]
    title = next(i for i, c in enumerate(cells) if ''.join(c['source']).startswith('# '))
    if path.name == 'index.ipynb': # its buttons keep their place
        place = next(i for i, c in enumerate(notebook['cells']) if c['id'] == BUTTONS)
        return notebook | {'cells': [*cells[:place], cell('markdown', BUTTONS, buttons(FIRST)), *cells[place:]]}
    code = next(i for i, c in enumerate(cells) if c['cell_type'] == 'code')
    page = path.relative_to(ROOT).as_posix()
    return notebook | {'cells': [*cells[:title + 1], cell('markdown', BUTTONS, buttons(page)), *cells[title + 1:code],
        cell('code', INSTALL, install(cells)), *cells[code:]]}


def as_text(notebook): return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + '\n'


def texts(notebook): return [(c['cell_type'], ''.join(c['source'])) for c in notebook['cells']]


def outdated():
    "{path: the notebook as it has to be} of those that are not."
    now = {path: json.loads(path.read_text(encoding='utf-8')) for path in [*pages(), ROOT/'nbs/index.ipynb']}
    new = {path: linked(path) for path in now}
    return {path: notebook for path, notebook in new.items() if texts(notebook) != texts(now[path])}


def site():
    "The text of `_quarto.yml` with the address behind GitHub's icon."
    text = (ROOT/'_quarto.yml').read_text(encoding='utf-8')
    return re.sub(r'(icon: github\s+href: )\S+', lambda m: m[1] + repository(), text)


if __name__ == '__main__':
    for path, notebook in outdated().items():
        path.write_text(as_text(notebook), encoding='utf-8')
        print(path.relative_to(ROOT))
    (ROOT/'_quarto.yml').write_text(site(), encoding='utf-8')
