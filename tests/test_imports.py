import ast, importlib.metadata, json, re, subprocess, sys, sysconfig, time
from graphlib import TopologicalSorter
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from llmft._modidx import d
from tests.test_package import settings

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT/'llmft'
MODULES = sorted(p for p in PACKAGE.rglob('*.py') if p.name[0] != '_')
GROUND = {'core', 'plots', 'hub'} # all wings may use these three modules

# each wing and the wings that it stands on; it may import those, what they stand on, and itself
STANDS_ON = {
    'config': [],
    'prompts': ['config'],
    'data': ['prompts'],
    'tokens': ['data'],
    'model': ['tokens'],
    'memory': ['model'],
    'inference': ['model'],
    'evaluation': ['inference'],
    'export': ['memory', 'inference', 'evaluation'],
    'training': ['export'],
    'commands': ['training'],
}


def may_import(wing):
    "The wings that modules of `wing` may import."
    return {wing}.union(*map(may_import, STANDS_ON[wing]))


def imports(path):
    "Each import in the module at `path`: the module it names, and whether it is inside a function."
    tree = ast.parse(path.read_text(encoding='utf-8'))
    functions = [f for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]
    inside = {node for f in functions for node in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level: # `from ..core import x` or `from . import chat`
            package = ['llmft', *path.relative_to(PACKAGE).parts[:-1]]
            start = '.'.join(package[:len(package) - node.level + 1])
            names = [f'{start}.{node.module}'] if node.module else [f'{start}.{alias.name}' for alias in node.names]
        elif isinstance(node, ast.ImportFrom): names = [node.module]
        else: continue
        for name in names: yield name, node in inside


def name_of(path): return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)


def test_every_module_is_in_a_wing():
    assert {name_of(p).split('.')[0] for p in MODULES} == GROUND | STANDS_ON.keys()
    assert all(len(p.relative_to(PACKAGE).parts) == 2 for p in MODULES if name_of(p) not in GROUND)


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_direction(path):
    wing = name_of(path).split('.')[0]
    allowed = GROUND | (may_import(wing) if wing in STANDS_ON else set())
    assert not {name.split('.')[1] for name, _ in imports(path) if name.startswith('llmft.')} - allowed


def test_no_module_imports_in_a_circle():
    names = {name_of(p) for p in MODULES}
    def needs(path): return {name[6:] for name, inside in imports(path) if not inside and name[6:] in names}
    arrows = {name_of(p): needs(p) for p in MODULES}
    list(TopologicalSorter(arrows).static_order()) # raises CycleError


def test_tests_lie_in_the_wings():
    "What tests a wing is in the folder of its name; beside them stand what is tested across wings, and `fixtures`."
    folders = {path.parent.name for path in (ROOT/'tests').glob('*/*.py')}
    assert folders and folders <= STANDS_ON.keys()


def test_notebooks_and_modules_lie_alike():
    exported = {}
    for path in (ROOT/'nbs').rglob('*.ipynb'):
        sources = [''.join(cell['source']) for cell in json.loads(path.read_text(encoding='utf-8'))['cells']]
        for source in sources:
            if m := re.match(r'#\| default_exp (\S+)', source): exported[m[1]] = path.relative_to(ROOT/'nbs')
    assert {*exported} == {name_of(p) for p in MODULES}
    for module, path in exported.items():
        assert re.sub(r'\d+_', '', path.with_suffix('').as_posix()) == module.replace('.', '/')


@pytest.mark.parametrize('path', MODULES, ids=name_of)
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
    times = [(seconds(llmft, '--help'), seconds(sys.executable, '-c', 'import typer.rich_utils')) for _ in range(9)]
    ours, least = map(min, zip(*times)) # the best of several: what other processes take is not ours
    assert ours < 2*least, f'{ours:.2f} s against {least:.2f} s'
