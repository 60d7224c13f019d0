"A prompt is in use what it was in training, or it is said."
import json, shutil

import pytest

from llmft.config.config import load_config
from llmft.core import UserError
from llmft.export.merge import merge_adapter
from llmft.inference.canary import CANARY, canary_prompts, check_canary
from llmft.inference.load import load_run
from llmft.prompts.turns import prompt_formats
from llmft.tokens.tokenize import load_tokenizer
from llmft.training.train import finetune
from tests.small import change_json, small_config
from tests.tiny import small_tokenizer


@pytest.fixture(scope='module', params=['alpaca', 'chat_template'])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp('canary')
    config = small_config(folder, test_datasets=[], val_set_size=0)
    rows = [{'messages': [{'role': 'user', 'content': f'Say {i}'}, {'role': 'assistant', 'content': str(i)}]}
            for i in range(8)]
    if request.param == 'chat_template':
        (folder/'chats.jsonl').write_text('\n'.join(map(json.dumps, rows)))
        data = [{'path': str(folder/'chats.jsonl'), 'type': 'chat_template'}]
        config = load_config(config, datasets=data)
    finetune(config, say=None)
    merge_adapter(folder/'run', folder/'merged')
    return folder/'run', folder/'merged'


def test_in_every_folder(run):
    run, merged = run
    kept = [json.loads((folder/CANARY).read_text()) for folder in (run, run/'adapter', merged)]
    assert kept[0] == kept[1] == kept[2] and len(kept[0]['prompts']) >= 2
    chat = load_run(run)
    for row in kept[0]['prompts']: # what is sent is what was kept
        text = row['prompt']
        if isinstance(text, list): chat.messages, text = text[:-1], text[-1]['content']
        assert chat.prompt_ids(text) == row['ids']
        chat.clear()


def test_every_way_to_open_gives_the_same_answer(run, tmp_path, monkeypatch):
    run, merged = run
    adapter = shutil.copytree(run/'adapter', tmp_path/'elsewhere')
    hub = tmp_path/'hub'
    monkeypatch.setattr('huggingface_hub.snapshot_download', lambda name, **_: str(hub/name))
    shutil.copytree(merged, hub/'someone'/'merged')
    shutil.copytree(adapter, hub/'someone'/'adapter')
    expected = load_run(run).generate(['Say 3'], max_new_tokens=6)
    for way in (adapter, run/'adapter', merged, 'someone/merged', 'someone/adapter'):
        assert load_run(way).generate(['Say 3'], max_new_tokens=6) == expected, way


def template(folder): # another one than in training
    file = folder/'chat_template.jinja'
    file.write_text(file.read_text().replace('assistant', 'model'))


def vocabulary(folder):
    tokenizer = json.loads((folder/'tokenizer.json').read_text())
    tokenizer['model']['merges'] = tokenizer['model']['merges'][:-200]
    (folder/'tokenizer.json').write_text(json.dumps(tokenizer))


def beginning(folder): # no `<s>` in front any longer
    tokenizer = json.loads((folder/'tokenizer.json').read_text())
    tokenizer['post_processor'] = None
    (folder/'tokenizer.json').write_text(json.dumps(tokenizer))


@pytest.mark.parametrize('change', [template, vocabulary, beginning], ids=lambda f: f.__name__)
@pytest.mark.parametrize('merged', [False, True], ids=['adapter', 'merged'])
def test_a_change_is_told(change, merged, run, tmp_path):
    chats = json.loads((run[0]/CANARY).read_text())['prompts'][0]['ids'] and 'chat' in (run[0]/'config.yml').read_text()
    if not chats and change is template: pytest.skip('this format has no template')
    if chats and change is beginning: pytest.skip('the template writes it')
    folder = shutil.copytree(run[merged], tmp_path/'run')
    change(folder if merged else folder/'adapter')
    with pytest.raises(UserError, match='canary.json: prompts are not what they were in training'): load_run(folder)
    (folder/CANARY if merged else folder/'adapter'/CANARY).unlink() # who wants to go on can
    load_run(folder)


def test_another_version_is_named(run, tmp_path):
    folder = shutil.copytree(run[1], tmp_path/'merged')
    change_json(folder/CANARY, packages={'tokenizers': '0.1', 'transformers': '4.0'})
    load_run(folder) # the ids are the same
    vocabulary(folder)
    with pytest.raises(UserError, match='tokenizers 0.1 then, '): load_run(folder)


@pytest.mark.parametrize('text', [
    '', '[]', '{"prompts": 3}', '{"prompts": [{"prompt": "a"}]}', '{"prompts": [{"ids": []}]}'])
def test_a_broken_file_is_named(text, tmp_path):
    (tmp_path/CANARY).write_text(text)
    config = small_config(tmp_path)
    with pytest.raises(UserError, match='canary.json cannot be read'): check_canary(tmp_path, small_tokenizer(), config)


def test_a_template_with_the_date_keeps_no_prompts(tmp_path):
    config = load_config(small_config(tmp_path), datasets=[{'path': 'a.jsonl', 'type': 'chat_template'}])
    tokenizer = load_tokenizer(config)
    tokenizer.chat_template = '{{ strftime_now("%d %b %Y") }}' + tokenizer.chat_template
    assert canary_prompts(tokenizer, config.datasets[0]) == []


def test_every_format_has_prompts(tmp_path):
    tokenizer, without = load_tokenizer(small_config(tmp_path)), []
    for name, fmt in prompt_formats().items():
        config = load_config({'base_model': 'a/b', 'datasets': [{'path': 'a.jsonl', 'type': name}]}) \
            if name != 'user_defined' else None
        if config and len(canary_prompts(tokenizer, config.datasets[0])) < 2: without.append(name)
    assert without == []
