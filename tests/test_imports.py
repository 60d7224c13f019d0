import ast, importlib.metadata, subprocess, sys, sysconfig, time
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from llmft._modidx import d
from tests.test_package import settings

PACKAGE = Path(__file__).parent.parent/'llmft'
MODULES = sorted(p for p in PACKAGE.glob('*.py') if p.name[0] != '_')

# what each module may import from the package
MAY_IMPORT = {
    'core':     set(),
    'sandbox':  set(),
    'hub':      {'core'},
    'axolotl':  {'core'},
    'keys':     set(),
    'config':   {'core', 'axolotl', 'keys'},
    'convert':  {'core', 'config', 'axolotl'},
    'plots':    {'core'},
    'memory_plots': {'plots'},
    'prompts':  {'core', 'config'},
    'formats':  {'core', 'config', 'prompts'},
    'chat':     {'core', 'config', 'prompts'},
    'dialogues': {'core', 'config', 'prompts', 'formats', 'chat'},
    'files':    {'core', 'config'},
    'data':     {'core', 'config', 'prompts', 'files', 'hub'},
    'dedup':    {'core', 'config', 'data'},
    'encode':   {'core', 'prompts'},
    'tokens':   {'encode', 'core', 'config', 'special', 'prompts', 'chat', 'hub'},
    'packing':  {'core'},
    'findings': {'core', 'config', 'tokens'},
    'report':   {'encode', 'special', 'core', 'config', 'hub', 'prompts', 'chat', 'data', 'dedup', 'tokens', 'packing', 'findings', 'stream'},
    'stream':   {'core', 'config', 'data', 'dedup', 'packing', 'tokens'},
    'gpus':     {'core', 'config'},
    'dryrun':   {'core'},
    'optimizers': {'core', 'config'},
    'loss':     {'tokens'},
    'special':  {'chat', 'core', 'config', 'hub'},
    'adapters': {'core', 'config', 'hub', 'special'},
    'arguments': {'core', 'config', 'optimizers', 'report'},
    'model':    {'core', 'config', 'gpus', 'hub', 'special'},
    'memory':   {'core', 'config', 'adapters', 'hub', 'gpus', 'dryrun', 'optimizers', 'loss', 'model', 'memory_plots'}, # a plan takes the run's own choices, adapter and loss
    'run':      {'keys', 'core', 'config', 'special', 'adapters', 'model', 'infer', 'plots'}, # `infer` for the sample answers
    'train':    {'core', 'config', 'special', 'adapters', 'arguments', 'hub', 'prompts', 'data', 'dedup', 'tokens', 'packing', 'report', 'loss', 'memory', 'optimizers', 'model', 'run'},
    'infer':    {'core', 'config', 'adapters', 'files', 'special', 'hub', 'prompts', 'tokens', 'model'},
    'evaluate': {'core', 'config', 'hub', 'prompts', 'data', 'dedup', 'tokens', 'model', 'infer'},
    'export':   {'core', 'config', 'special', 'hub', 'tokens', 'model', 'infer'},
}
MAY_IMPORT['evaluate'] |= {'sandbox', 'plots'}
MAY_IMPORT['check'] = {'core', 'config', 'adapters', 'arguments', 'data', 'hub', 'memory', 'model', 'report', 'run', 'stream', 'tokens', 'train'}
MAY_IMPORT['demo'] = {*MAY_IMPORT} - {'check'}
MAY_IMPORT['cli'] = {*MAY_IMPORT}


def imports(path):
    "Each import in the module at `path`: the module it names, and whether it is inside a function."
    tree = ast.parse(path.read_text(encoding='utf-8'))
    inside = {n for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level: # `from .core import x` or `from . import core`
            names = [f'llmft.{node.module}'] if node.module else [f'llmft.{alias.name}' for alias in node.names]
        elif isinstance(node, ast.ImportFrom): names = [node.module]
        else: continue
        for name in names: yield name, node in inside


@pytest.mark.parametrize('path', MODULES, ids=lambda p: p.stem)
def test_direction(path):
    own = {(name.split('.')[1], lazy) for name, lazy in imports(path) if name.startswith('llmft.')}
    wrong = {name for name, lazy in own if name not in MAY_IMPORT[path.stem] and not (lazy and name == 'plots')}
    assert not wrong - {'__version__'}


@pytest.mark.parametrize('path', MODULES, ids=lambda p: p.stem)
def test_requirements_name_what_is_imported(path):
    ini = settings()
    needs = ' '.join([ini['package']['requirements'], *ini['extras'].values()]).split()
    named = {canonicalize_name(Requirement(need).name) for need in needs}
    packages = importlib.metadata.packages_distributions()
    for top in {name.partition('.')[0] for name, _ in imports(path)} - sys.stdlib_module_names - {'llmft'}:
        assert named & {canonicalize_name(name) for name in packages.get(top, [top])}, f'{top} is not in settings.ini'


def test_each_public_name_is_in_one_module():
    names = [name.removeprefix(module + '.') for module, symbols in d['syms'].items() for name in symbols]
    public = [name for name in names if '.' not in name and name[0] != '_']
    assert sorted(public) == sorted(set(public)) # `from llmft import name` takes it from there


def test_import_is_light():
    code = 'import sys, llmft; print(*{"torch", "transformers", "datasets", "pydantic"} & {*sys.modules})'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == ''


def test_help_is_quick():
    def seconds(*command):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start
    llmft = Path(sysconfig.get_path('scripts'))/'llmft'
    times = [(seconds(llmft, '--help'), seconds(sys.executable, '-c', 'import typer, rich')) for _ in range(9)]
    ours, least = map(min, zip(*times)) # the best of several: what other processes take is not ours
    assert ours < 3*least, f'{ours:.2f} s against {least:.2f} s'
