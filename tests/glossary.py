"""Words of the glossary and where a page uses them first: there they are linked, once on a page.

    python -m tests.glossary          # what is not linked
    python -m tests.glossary PAGE …   # writes the links into these pages; read them before you keep them

Only running text counts: no headings, tables, code, pictures, links, exercises or the line below the title. Everyday
words (step, context, prompt, model) are linked by hand where it helps, and are not looked for.
"""
import json, re, sys
from pathlib import Path

from tests.links import as_text

NBS = Path(__file__).parent.parent/'nbs'
GLOSSARY = NBS/'tutorials'/'glossary.ipynb'

# heading of the glossary, as a link names it -> how the word looks; what stands first wins where two begin together
WORDS = {
    'gradient-checkpointing': r'(?:gradient )?checkpointing', 'gradient-accumulation': r'gradient accumulation',
    'control-token': r'control tokens?', 'chat-template': r'chat templates?', 'learning-rate': r'learning rates?',
    'warm-up': r'warm-?up', 'base-model': r'base models?', 'held-out': r'held[- ]out', 'pass1': r'pass@\w+',
    'quantization-and-nf4': r'quanti[sz]\w+|NF4', 'qlora': r'QLoRA', 'lora': r'LoRA', 'lora_r': r'ranks?',
    'weights': r'weights?', 'loss': r'loss(?:es)?', 'gradient': r'gradients?', 'optimizer': r'optimizers?',
    'batch': r'batch(?:es)?', 'epoch': r'epochs?', 'overfit': r'overfit\w*', 'perplexity': r'perplexity',
    'token': r'tokens?', 'labels': r'labels?', 'mask': r'masks?', 'packing': r'pack(?:ed|ing|s)',
    'adapter': r'adapters?', 'bfloat16': r'bfloat16', 'attention': r'attention', 'activations': r'activations?',
    'checkpoint': r'checkpoints?',
    'merge': r'merg(?:e|es|ed|ing)', 'retrieval': r'retrieval|RAG', 'seed': r'seeds?'}
WORD = re.compile('|'.join(f'(?P<w{i}>\\b(?:{look})\\b)' for i, look in enumerate(WORDS.values())), re.I)

# the same letters in another sense
OTHER_SENSES = r'no loss against|packs two codes'

LINK = re.compile(r'\[[^\]\n]*\]\([^)\n]*glossary\.ipynb#([\w-]+)\)')
NOT_RUNNING = re.compile('|'.join([
    r'^(?P<fence>`{3,})[^\n]*\n.*?^(?P=fence)$', r'<details>.*?</details>', r'^#{1,6} [^\n]*', r'^>[^\n]*',
    r'^ *\|[^\n]*',
    r'^\*\*[^*\n]*\*\*$', r'!?\[(?:[^\[\]\n]|!\[[^\]\n]*\]\([^)\n]*\))*\]\([^)\n]*\)',
    r'`+[^`\n]+`+', r'https?://\S+', r'\*GPU\.\*', OTHER_SENSES]), re.M | re.S)


def pages():
    "The pages that link words: the course and the book."
    return sorted([*(NBS/'tutorials').glob('[0-9]*.ipynb'), *(NBS/'book').glob('*.ipynb')])


def running(text):
    "The text with blanks in place of all that is no running text, so that places stay."
    return NOT_RUNNING.sub(lambda m: ' ' * len(m[0]), text)


def read(path): return json.loads(path.read_text(encoding='utf-8'))


def markdown(notebook):
    "The text of each Markdown cell by its place."
    return {i: ''.join(c['source']) for i, c in enumerate(notebook['cells']) if c['cell_type'] == 'markdown'}


def events(text):
    "(place, anchor, is it a link, word) of links and words, in order."
    links = [(m.start(), m[1], True, m[0]) for m in LINK.finditer(text)]
    plain = [(m.start(), [*WORDS][int(m.lastgroup[1:])], False, m[0]) for m in WORD.finditer(running(text))]
    return sorted(links + plain)


def first_uses(texts):
    "({anchor: (cell, place, word)} of first uses without a link, [(cell, anchor, link)] of links after them)."
    unlinked, late, seen = {}, [], set()
    for i, text in texts.items():
        before, exercises, _ = text.partition('## Exercises')
        for place, anchor, is_link, word in events(before):
            if is_link and anchor in seen: late.append((i, anchor, word))
            elif not is_link and anchor not in seen: unlinked[anchor] = i, place, word
            seen.add(anchor)
        if exercises: break
    return unlinked, late


def unlinked(path):
    "[(word, the text around its first use)] of words that are not linked there, and links that come later."
    texts = markdown(read(path))
    missing, late = first_uses(texts)
    around = [(word, texts[i][max(place - 40, 0):place + 40]) for i, place, word in missing.values()]
    return around + [(anchor, f'linked again or too late: {link}') for _, anchor, link in late]


def with_links(path):
    "The notebook with each word linked at its first use, and nowhere else."
    notebook, target = read(path), '' if path.parent == GLOSSARY.parent else '../tutorials/'
    texts = markdown(notebook)
    missing, late = first_uses(texts)
    for anchor, (i, place, word) in sorted(missing.items(), key=lambda item: item[1], reverse=True): # from the end
        link = f'[{word}]({target}glossary.ipynb#{anchor})'
        texts[i] = texts[i][:place] + link + texts[i][place + len(word):]
    for i, anchor, link in late:
        first, _, rest = texts[i].rpartition(link)
        texts[i] = first + re.match(r'\[([^\]]*)\]', link)[1] + rest
    for i, text in texts.items(): notebook['cells'][i]['source'] = text.splitlines(keepends=True)
    return notebook


if __name__ == '__main__':
    for path in [Path(name).resolve() for name in sys.argv[1:]]:
        path.write_text(as_text(with_links(path)), encoding='utf-8')
    if not sys.argv[1:]:
        for path in pages():
            for word, around in unlinked(path): print(f'{path.relative_to(NBS)}: {word}: {around!r}')
