"The command that vLLM would be started with."
import json

import pytest

from llmft.core import UserError
from llmft.export.merge import merge_adapter
from llmft.inference.load import load_run_config, load_saved_tokenizer
from llmft.inference.pieces import chat_template, template_problem
from llmft.inference.vllm import vllm_command
from tests.small import change_json, small_run


def option(command, name): return command[command.index(name) + 1]


def test_an_adapter(tmp_path):
    run = small_run(tmp_path)
    other = small_run(tmp_path/'other', base_model=str(tmp_path/'model'), lora_r=24)
    command = vllm_command(run, also={'second': other}, port=9000)
    assert command[:3] == ['vllm', 'serve', str(tmp_path/'model')] and option(command, '--max-lora-rank') == '32'
    assert {f'run={run}/adapter', f'second={other}/adapter'} <= {*command} and '--enable-lora' in command
    assert (option(command, '--host'), option(command, '--port')) == ('127.0.0.1', '9000')


def test_the_template_is_that_of_the_training(tmp_path):
    for name in ('alpaca', 'chat_template', 'completion', 'prompt_completion'):
        folder = tmp_path/name
        folder.mkdir()
        run = small_run(folder, datasets=[{'path': str(folder/'data.jsonl'), 'type': name}], test_datasets=[])
        file = option(vllm_command(run), '--chat-template')
        config = load_run_config(run)
        tokenizer = load_saved_tokenizer(run/'adapter', config)
        template = open(file).read()
        assert template == chat_template(config, tokenizer, with_bos=True)
        assert template_problem(template, tokenizer, config.datasets[0]) is None, name
        assert template_problem('x' + template, tokenizer, config.datasets[0])


def test_a_merged_model(tmp_path):
    merged = merge_adapter(small_run(tmp_path), tmp_path/'merged')
    command = vllm_command(merged)
    assert command[2] == str(merged) and option(command, '--served-model-name') == 'merged'
    assert '--enable-lora' not in command
    with pytest.raises(UserError, match='whole model'): vllm_command(merged, also={'second': tmp_path/'run'})


@pytest.mark.parametrize('saved', [{'use_dora': True}, {'modules_to_save': ['lm_head']}, {'bias': 'all'}], ids=str)
def test_what_vllm_does_not_take(saved, tmp_path):
    run = small_run(tmp_path)
    change_json(run/'adapter'/'adapter_config.json', **saved)
    with pytest.raises(UserError, match='Merge it'): vllm_command(run)


def test_another_format_beside_it(tmp_path):
    run = small_run(tmp_path)
    (tmp_path/'other').mkdir()
    other = small_run(tmp_path/'other', base_model=str(tmp_path/'model'), test_datasets=[],
                      datasets=[{'path': str(tmp_path/'data.jsonl'), 'type': 'chat_template'}])
    with pytest.raises(UserError, match='have another form'): vllm_command(run, also={'second': other})


def test_nothing_of_the_key(tmp_path):
    assert 'api' not in json.dumps(vllm_command(small_run(tmp_path)))
