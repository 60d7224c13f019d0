"Chat templates of models, held against the text that was published for them."
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from llmft import list_chat_templates

TALK = [{'role': 'system', 'content': 'Be kind.'}, {'role': 'user', 'content': 'Name a prime.'},
    {'role': 'assistant', 'content': '7'}]


def render(name, messages, **options):
    template = list_chat_templates()[name].read_text(encoding='utf-8')
    tokens = {'bos_token': '<bos>', 'eos_token': '<eos>'}
    texts, _ = render_jinja_template([messages], chat_template=template, **tokens, **options)
    return texts[0]


TEXTS = {
    'falcon_h1': ('<bos><|im_start|>system\nBe kind.<|im_end|>\n', '<|im_start|>user\nName a prime.<|im_end|>\n',
        '<|im_start|>assistant\n', '7<|im_end|>\n'),
    'jamba': ('<bos><|bom|><|system|> Be kind.<|eom|>', '<|bom|><|user|> Name a prime.<|eom|>',
        '<|bom|><|assistant|>', ' 7<|eom|>'),
    'llama4': ('<bos><|header_start|>system<|header_end|>\n\nBe kind.<|eot|>',
        '<|header_start|>user<|header_end|>\n\nName a prime.<|eot|>', '<|header_start|>assistant<|header_end|>\n\n',
        '7<|eot|>'),
    'exaone4': ('[|system|]\nBe kind.[|endofturn|]\n', '[|user|]\nName a prime.[|endofturn|]\n',
        '[|assistant|]\n<think>\n\n</think>\n\n', '7[|endofturn|]\n'),
    'command_a': ('<bos><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be kind.<|END_OF_TURN_TOKEN|>',
        '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Name a prime.<|END_OF_TURN_TOKEN|>',
        '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>', '7<|END_RESPONSE|><|END_OF_TURN_TOKEN|>'),
    'gemma3n': ('<bos><start_of_turn>user\nBe kind.\n\n', 'Name a prime.<end_of_turn>\n', '<start_of_turn>model\n',
        '7<end_of_turn>\n'),
    'gemma4': ('<bos><|turn>system\nBe kind.<turn|>\n', '<|turn>user\nName a prime.<turn|>\n', '<|turn>model\n',
        '7<turn|>\n'),
}


@pytest.mark.parametrize('name', TEXTS)
def test_text(name):
    system, user, prompt, answer = TEXTS[name]
    assert render(name, TALK) == system + user + prompt + answer
    assert render(name, TALK[:2], add_generation_prompt=True) == system + user + prompt
    more = [{'role': 'user', 'content': 'Another?'}, {'role': 'assistant', 'content': '11'}]
    start = '<start_of_turn>user\n' if name == 'gemma3n' else ''
    asked, answered = user.replace('Name a prime.', 'Another?'), answer.replace('7', '11')
    assert render(name, TALK + more) == system + user + prompt + answer + start + asked + prompt + answered


def test_without_a_system_message():
    assert render('jamba', TALK[1:]).startswith('<bos><|bom|><|system|> <|eom|><|bom|><|user|> Name')
    for name in ('falcon_h1', 'llama4', 'command_a'):
        system, user, prompt, answer = TEXTS[name]
        assert render(name, TALK[1:]) == '<bos>' + user + prompt + answer
    assert render('exaone4', TALK[1:]) == ''.join(TEXTS['exaone4'][1:])


def test_thoughts():
    thought = [TALK[1], TALK[2] | {'reasoning_content': 'hmm'}]
    assert render('exaone4', thought).endswith('[|assistant|]\n<think>\nhmm\n</think>\n\n7[|endofturn|]\n')
    open_prompt = render('exaone4', thought[:1], add_generation_prompt=True, enable_thinking=True)
    assert render('exaone4', thought).startswith(open_prompt)
    assert render('qwen3_5', thought).endswith('<|im_start|>assistant\n<think>\nhmm\n</think>\n\n7<|im_end|>\n')


@pytest.mark.parametrize('name', ['falcon_h1', 'jamba', 'llama4', 'exaone4', 'command_a'])
def test_other_roles_have_no_form(name):
    with pytest.raises(Exception, match='have a form'): render(name, [*TALK, {'role': 'tool', 'content': '5'}])
