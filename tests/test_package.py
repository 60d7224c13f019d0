import subprocess, sys
from configparser import ConfigParser
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile
import pytest
from packaging.requirements import Requirement
import llmft

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope='session')
def wheel(tmp_path_factory):
    "The files of the wheel that is built from the source archive, by name."
    out = tmp_path_factory.mktemp('wheel')
    command = [sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, ROOT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with ZipFile(next(out.glob('*.whl'))) as archive: return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def metadata(wheel): return message_from_bytes(next(data for name, data in wheel.items() if name.endswith('/METADATA')))


def settings():
    ini = ConfigParser(interpolation=None)
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    return ini


def test_needs_what_settings_say(metadata):
    ini = settings()
    needs = ini['package']['requirements'].split()
    for extra, packages in ini['extras'].items():
        needs += [f'{package}; extra == "{extra}"' for package in packages.split()]
    assert {Requirement(r) for r in metadata.get_all('Requires-Dist')} == {Requirement(r) for r in needs}
    assert metadata.get_all('Provides-Extra') == list(ini['extras'])
    assert metadata['Requires-Python'] == '>=' + ini['package']['min_python']


def test_version(metadata): assert metadata['Version'] == llmft.__version__


def test_holds_the_whole_package(wheel):
    here = {p.relative_to(ROOT).as_posix() for p in (ROOT/'llmft').rglob('*') if p.is_file() and p.suffix != '.pyc'}
    assert {name for name in wheel if name.startswith('llmft/')} == here
    for pattern in ('recipes/*.yml', 'prompts/templates/*.jinja', 'builtin/**/*.jsonl.gz', 'builtin/**/README.md'):
        assert list((ROOT/'llmft').glob(pattern)), pattern


def test_command(wheel):
    ini = ConfigParser()
    ini.read_string(next(data for name, data in wheel.items() if name.endswith('/entry_points.txt')).decode())
    module, function = ini['console_scripts']['llmft'].split(':')
    assert callable(getattr(__import__(module, fromlist=[function]), function))
