"Uploads to a stand-in of the Hub, with faults."
import base64, hashlib, json, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import load

import llmft.hub
from llmft.core import UserError
from llmft.export.card import model_card
from llmft.export.merge import merge_adapter
from llmft.export.push import push_to_hub
from llmft.inference.load import load_run
from tests.small import small_run

TOKEN = 'hf_verysecrettoken'


class Hub(BaseHTTPRequestHandler):
    "What an upload asks of the Hub: repositories, objects by their SHA-256, commits."
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args): pass

    def answer(self, value, status=200, **headers):
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {'Content-Type': 'application/json', 'Content-Length': len(body), **headers}.items():
            self.send_header(name, str(text))
        self.end_headers()
        self.wfile.write(body)

    def fault(self): # is there one for this request; it is given
        hub = self.server
        kind = f'{self.command} {self.path}'
        for fault in hub.faults:
            if fault[0] not in kind or not fault[2]: continue
            fault[2] -= 1
            if fault[1] == 'cut': self.close_connection = True
            else: self.answer({'error': 'a fault'}, fault[1], **{'Retry-After': 0} if fault[1] == 429 else {})
            return True
        if self.headers.get('Authorization') not in (f'Bearer {TOKEN}', None): self.answer({'error': 'no'}, 401)
        return False

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        hub, path = self.server, self.path
        hub.requests.append(f'POST {path}')
        if self.fault(): return
        url = f'http://127.0.0.1:{hub.server_port}'
        if path == '/api/repos/create':
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            hub.private.setdefault(name, asked.get('private', asked.get('visibility') == 'private'))
            self.answer({'url': f'{url}/{name}', 'id': name, 'name': name})
        elif '/preupload/' in path:
            files = json.loads(body)['files']
            self.answer({'files': [{'path': f['path'], 'shouldIgnore': False,
                'uploadMode': 'lfs' if f['path'].endswith(('.safetensors', '.png')) else 'regular'} for f in files]})
        elif path.endswith('/info/lfs/objects/batch'):
            objects = []
            for entry in json.loads(body)['objects']:
                known = entry['oid'] in hub.objects
                actions = {} if known else {'actions': {'upload': {'href': f'{url}/put/{entry["oid"]}'}}}
                objects.append({'oid': entry['oid'], 'size': entry['size'], **actions})
            self.answer({'transfer': 'basic', 'objects': objects})
        elif '/commit/' in path:
            for line in body.decode().splitlines():
                operation = json.loads(line)
                value = operation['value']
                if operation['key'] == 'file': hub.files[value['path']] = base64.b64decode(value['content'])
                if operation['key'] == 'lfsFile': hub.files[value['path']] = hub.objects[value['oid']]
            hub.commits += 1
            self.answer({'commitUrl': f'{url}/me/model/commit/{"1"*40}', 'commitOid': '1'*40, 'success': True})
        elif 'validate-yaml' in path: self.answer({'errors': [], 'warnings': []})
        else: self.answer({}, 404)

    def do_PUT(self):
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        self.server.requests.append(f'PUT {self.path}')
        if self.fault(): return
        assert hashlib.sha256(body).hexdigest() == self.path.split('/')[-1]
        self.server.objects[self.path.split('/')[-1]] = body
        self.answer({})

    def do_GET(self):
        self.server.requests.append(f'GET {self.path}')
        if not self.fault(): self.answer({'id': 'me/model', 'sha': '1'*40, 'siblings': [], 'private': True})

    def do_HEAD(self): self.answer({})


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.handle_error = lambda *args: None # of connections that the client closes
    server.faults, server.files, server.objects, server.private, server.requests, server.commits = [], {}, {}, {}, [], 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}'
    monkeypatch.setattr(constants, 'ENDPOINT', url)
    monkeypatch.setattr('huggingface_hub.hf_api.ENDPOINT', url, raising=False)
    monkeypatch.setattr(constants, 'HF_URL_HOSTS', constants.HF_URL_HOSTS | {'127.0.0.1'})
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    monkeypatch.setattr('huggingface_hub.utils._http.time.sleep', lambda seconds: None)
    llmft.hub._hub_unreachable.cache_clear()
    yield server
    server.shutdown()
    server.server_close()


def push(run, said=None, **kwargs):
    return push_to_hub(run, 'me/model', say=(said if said is not None else []).append, waits=(0, 0, 0), **kwargs)


def test_adapter(hub, tmp_path):
    run = small_run(tmp_path)
    assert push(run).endswith('/me/model')
    assert hub.private['me/model'] is True
    assert hub.files['adapter_model.safetensors'] == (run/'adapter'/'adapter_model.safetensors').read_bytes()
    assert {'README.md', 'adapter_config.json', 'tokenizer.json'} <= {*hub.files}
    assert json.loads(hub.files['adapter_config.json'])['base_model_name_or_path'] == 'model'
    for name, content in hub.files.items(): assert str(tmp_path).encode() not in content, name
    assert {p.name for p in tmp_path.iterdir()} == {'model', 'run', 'data.jsonl'}


def test_merged(hub, tmp_path):
    push(small_run(tmp_path), merged=True)
    assert 'model.embed_tokens.weight' in load(hub.files['model.safetensors'])
    assert b'library_name: transformers' in hub.files['README.md']
    assert {p.name for p in tmp_path.iterdir()} == {'model', 'run', 'data.jsonl'}


FAULTS = {'500 at the file': ['PUT', 500, 9], '500 at the commit': ['/commit/', 500, 2],
          'cut at the file': ['PUT', 'cut', 9], 'cut at the commit': ['/commit/', 'cut', 1],
          '429': ['/commit/', 429, 2], '503 at first': ['repos/create', 503, 1]}


@pytest.mark.parametrize('name', FAULTS)
def test_faults_that_pass(name, hub, tmp_path):
    hub.faults, said = [[*FAULTS[name]]], []
    push(small_run(tmp_path), said)
    assert {'README.md', 'adapter_model.safetensors'} <= {*hub.files}
    assert TOKEN not in str(said)


def test_what_was_sent_is_not_sent_again(hub, tmp_path):
    hub.faults = [['/commit/', 500, 1000]]
    run = small_run(tmp_path)
    with pytest.raises(UserError, match='was cut off.*The same command goes on where it stopped'): push(run)
    sent = [request for request in hub.requests if request.startswith('PUT')]
    hub.faults = []
    push(run)
    assert [request for request in hub.requests if request.startswith('PUT')] == sent and hub.commits == 1


STAY = {401: 'does not accept your token', 403: 'may not write to me/model', 429: 'too many requests'}


@pytest.mark.parametrize(('status', 'message'), STAY.items())
def test_faults_that_stay(status, message, hub, tmp_path, capfd, caplog):
    hub.faults, said = [['POST', status, 10**6]], []
    with pytest.raises(UserError, match=message) as error: push(small_run(tmp_path), said)
    everything = str(error.value) + str(said) + caplog.text + ''.join(capfd.readouterr())
    assert TOKEN not in everything and 'Traceback' not in everything


@pytest.mark.parametrize('repo', ['model', 'a/b/c', 'me/', 'https://huggingface.co/me/model'])
def test_wrong_names(repo, tmp_path):
    with pytest.raises(UserError, match='is not a name on the Hub'): push_to_hub(small_run(tmp_path), repo, say=None)


def test_card(tmp_path):
    run = small_run(tmp_path, hub_model_id='me/old', datasets=[
        {'path': str(tmp_path/'data.jsonl')}, {'path': 'https://me:pw@a.org/rows.jsonl?token=abcdefghijklmnop'}])
    (run/'metrics.jsonl').write_text('{"step": 0, "eval_loss": 2.5}\n{"step": 1, "eval_loss": 1.25}\n')
    (run/'scores.json').write_text(json.dumps({'base': {'passed': 1}, 'tuned': {'passed': 7}}))
    card = model_card(run, 'mine', 'me/mine')
    assert str(tmp_path) not in card and 'pw@' not in card and 'abcdefghijklmnop' not in card
    assert '| held-out loss | 2.500 | 1.250 |' in card and '| passed | 1 | 7 |' in card
    assert card.startswith('---\nlibrary_name: peft\n') and 'from_pretrained("me/mine")' in card
    assert str(Path.home()) not in card


def test_opened_from_the_hub(hub, tmp_path, monkeypatch):
    "A run that was sent has its prompt format, and nothing of this machine."
    (tmp_path/'own.jinja').write_text('{% for m in messages %}Q: {{ m.content }}\n{% endfor %}A:')
    source = {'path': str(tmp_path/'data.jsonl'), 'type': 'chat_template', 'chat_template': str(tmp_path/'own.jinja')}
    run = small_run(tmp_path, datasets=[source], test_datasets=[], mirror_to=str(tmp_path/'drive'))
    expected = load_run(run).generate(['Add 3'], max_new_tokens=8)
    push(run)
    (tmp_path/'own.jinja').unlink()
    for name, content in hub.files.items():
        (tmp_path/'got').mkdir(exist_ok=True)
        (tmp_path/'got'/name).write_bytes(content)
        assert str(tmp_path).encode() not in content, name
    monkeypatch.chdir(tmp_path) # the base is known by its name only
    got = load_run('got')
    assert got.generate(['Add 3'], max_new_tokens=8) == expected
    assert got.config.datasets[0].chat_template.startswith('{% for') and got.config.mirror_to is None


def test_a_merged_model_that_is_there(hub, tmp_path):
    run = small_run(tmp_path)
    merged = merge_adapter(run, tmp_path/'merged', say=None)
    push(run, merged=merged)
    assert hub.files['model.safetensors'] == (merged/'model.safetensors').read_bytes()


def test_without_a_token(tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.get_token', lambda: None)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    with pytest.raises(UserError, match='there is no token'): push_to_hub(small_run(tmp_path), 'me/model', say=None)
