"Code that comes with a model or a run is run only if the user says so now; no key of an address gets into a run."
import pickle
from pathlib import Path

import pytest
import yaml

from llmft.core import UserError, hide_secrets
from llmft.evaluation.scores import score_run
from llmft.export.merge import merge_adapter
from llmft.inference.load import load_run
from llmft.training.run import _check_same_settings, check_output, start_run
from llmft.model.base import detect_hardware
from tests.bad_data import ask
from tests.small import change_json, small_config, small_run

SPY = 'from pathlib import Path\nPath({marker!r}).write_text("code of a stranger")\n'
TOKENIZER = 'from transformers import PreTrainedTokenizerFast\nclass Mine(PreTrainedTokenizerFast): pass\n'
CONFIG = 'from transformers import LlamaConfig\nclass Mine(LlamaConfig): pass\n'


class Bomb:
    def __init__(self, marker): self.marker = marker
    def __reduce__(self): return Path.write_text, (Path(self.marker), 'code of a stranger')


def set_keys(run, **keys):
    file = run/'config_completed.yml'
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | keys))


def tokenizer_code(run, marker):
    set_keys(run, trust_remote_code=True)
    (run/'adapter'/'mine.py').write_text(SPY.format(marker=str(marker)) + TOKENIZER)
    change_json(run/'adapter'/'tokenizer_config.json', auto_map={'AutoTokenizer': [None, 'mine.Mine']},
                tokenizer_class='Mine')


def model_code(run, marker, **keys):
    set_keys(run, **({'trust_remote_code': True} | keys))
    model = run.parent/'model'
    (model/'mine.py').write_text(SPY.format(marker=str(marker)) + CONFIG)
    change_json(model/'config.json', auto_map={'AutoConfig': 'mine.Mine'}, model_type='mine')


def model_code_by_kwargs(run, marker): model_code(run, marker, model_kwargs={'trust_remote_code': True})


def pickled_adapter(run, marker):
    (run/'adapter'/'adapter_model.safetensors').unlink()
    (run/'adapter'/'adapter_model.bin').write_bytes(pickle.dumps(Bomb(marker)))


def pickled_model(run, marker):
    set_keys(run, model_kwargs={'use_safetensors': False, 'weights_only': False})
    (run.parent/'model'/'pytorch_model.bin').write_bytes(pickle.dumps(Bomb(marker)))


@pytest.mark.parametrize('prepare', [tokenizer_code, model_code, model_code_by_kwargs, pickled_adapter, pickled_model])
def test_code_in_a_run_folder_is_not_run(prepare, tmp_path):
    run, marker = small_run(tmp_path), tmp_path/'marker'
    prepare(run, marker)
    ways = [lambda: load_run(run), lambda: load_run(run, also={'other': run}),
            lambda: score_run(run, run_code=True, progress=None), lambda: merge_adapter(run, tmp_path/'merged')]
    for way in ways:
        try: way()
        except UserError as e: assert 'Traceback' not in str(e)
        assert not marker.exists()
    status, _, err = ask('generate', str(run), '-p', 'a')
    assert status in (0, 2) and not marker.exists(), err


@pytest.mark.parametrize('prepare', [tokenizer_code, model_code])
def test_who_opens_may_say_so(prepare, tmp_path):
    run, marker = small_run(tmp_path), tmp_path/'marker'
    prepare(run, marker)
    try: load_run(run, trust_remote_code=True)
    except UserError: pass # the class of this test is no real one
    assert marker.exists()


def test_code_in_a_whole_model(tmp_path):
    run, marker = small_run(tmp_path), tmp_path/'marker'
    merged = merge_adapter(run, tmp_path/'merged')
    (merged/'mine.py').write_text(SPY.format(marker=str(marker)) + CONFIG)
    change_json(merged/'config.json', auto_map={'AutoConfig': 'mine.Mine'}, model_type='mine')
    file = merged/'llmft.yml'
    file.write_text(file.read_text().replace('trust_remote_code: false', 'trust_remote_code: true'))
    with pytest.raises(UserError, match='--trust-remote-code'): load_run(merged)
    assert not marker.exists()


@pytest.mark.parametrize('address', [
    'https://a.org/d.jsonl?token=s3cr3t', 'https://me:s3cr3t@a.org/d.jsonl', 's3://s3cr3t@bucket/d.jsonl',
    'https://b.blob.core/d.jsonl?sv=1&sig=s3cr3t', 'https://a.org/d.jsonl?download=1&X-Amz-Credential=s3cr3t',
    'https://a.org/d.jsonl?x=s3cr3ts3cr3ts3cr3ts3cr3t'])
def test_no_key_of_an_address_is_kept(address, tmp_path):
    config = small_config(tmp_path, datasets=[{'path': address}])
    data = {'sources': [{'path': address}]}
    run = start_run(config, detect_hardware(config), data, check_output(config))
    for file in run.path.rglob('*'): assert 's3cr3t' not in file.read_text(), file
    assert 'HIDDEN' in run.config.datasets[0].path
    _check_same_settings(run.path, config, resume=True)
    start_run(config, detect_hardware(config), data, run.path, resume=True)


def test_other_texts_stay():
    for text in ['https://a.org/d.jsonl?download=true', 'data/token=3.jsonl', 'a: b', '{instruction} key=3',
                 'https://huggingface.co/datasets/a/b/resolve/main/d.jsonl']:
        assert hide_secrets({'x': [text]}) == {'x': [text]}
