"Problems of the shape of HumanEval and MBPP, made from templates: each with a right answer and a wrong one."
TEMPLATES = [ # name, arguments, what it does, right body, wrong body, [(arguments, result), …]; `N` is a number
    ('add_{N}', 'x', 'x plus {N}', 'return x + {N}', 'return x - {N}', lambda n: [((1,), 1 + n), ((-n,), 0)]),
    ('times_{N}', 'xs: List[int]', 'each number times {N}', 'return [x * {N} for x in xs]', 'return xs * {N}',
     lambda n: [(([1, 2],), [n, 2 * n]), (([3],), [3 * n])]),
    ('longer_than_{N}', 'words: List[str]', 'the words with more than {N} letters',
     'return [w for w in words if len(w) > {N}]', 'return [w for w in words if len(w) >= {N}]',
     lambda n: [((['a' * n, 'b' * (n + 1)],), ['b' * (n + 1)]), (([],), [])]),
    ('count_multiples_of_{N}', 'limit', 'how many numbers from 1 to the limit are multiples of {N}',
     'return limit // {N}', 'return limit / {N}', lambda n: [((n + 1,), 1), ((3 * n + 1,), 3)]),
    ('root_{N}', 'x: float', 'the {N}th root', 'return x ** (1 / {N})', 'return x ** (1 / ({N} + 1))',
     lambda n: [((2.0 ** n,), 'CLOSE 2.0'), ((3.0 ** n,), 'CLOSE 3.0')]),
    ('first_{N}_letters', 'text: str', 'how often each of the first {N} letters comes',
     'return dict(Counter(text[:{N}]))', 'return dict(Counter(text[:{N} - 1]))',
     lambda n: [(('a' * n + 'b',), {'a': n}), (('b' * n,), {'b': n})]),
    ('pairs_{N}', 'xs', 'the set of pairs whose sum is {N}',
     'return {{(a, b) for a in xs for b in xs if a + b == {N} and a < b}}', 'return {{(a, b) for a in xs for b in xs}}',
     lambda n: [(([0, n],), {(0, n)}), (([n, 2 * n],), set())]),
    ('remove_{N}', 'xs', 'take every {N} out of the list itself', 'while {N} in xs: xs.remove({N})', 'xs = [0]',
     lambda n: [(([n, 1, n] if n != 1 else [1, 0],), 'CHANGED ' + repr([1] if n != 1 else [0]))]),
    ('positive_{N}', 'x', 'x, or a ValueError if it is below {N}',
     'if x < {N}: raise ValueError("low")\n    return x', 'return x if x >= {N} else None',
     lambda n: [((n,), n), ((n - 1,), 'RAISES ValueError')]),
    ('steps_{N}', 'n', 'yield 0, {N}, … below n', 'yield from range(0, n, {N})', 'yield from range({N}, n)',
     lambda n: [((2 * n + 1,), 'LIST ' + repr([0, n, 2 * n]))])]


def _line(name, args, want): # a test
    call = f'candidate({", ".join(map(repr, args))})'
    kind, _, rest = want.partition(' ') if isinstance(want, str) else ('', '', '')
    if kind == 'CLOSE': return f'    assert abs({call} - {rest}) < 1e-6'
    if kind == 'CHANGED': return f'    xs = {args[0]!r}\n    candidate(xs)\n    assert xs == {rest}'
    if kind == 'LIST': return f'    assert list({call}) == {rest}'
    if kind == 'RAISES': return f'    try: {call}\n    except {rest}: pass\n    else: assert False'
    return f'    assert {call} == {want!r}, "{name}"'


def _problem(i):
    name, args, about, right, wrong, cases = TEMPLATES[i % len(TEMPLATES)]
    n = i // len(TEMPLATES) + 2
    name, about, right, wrong = (text.format(N=n) for text in (name, about, right, wrong))
    prompt = (f'from typing import List\nfrom collections import Counter\n\n\ndef {name}({args}):\n'
              f'    """ {about}\n    >>> {name}(…)\n    """\n')
    tests = '\n'.join(_line(name, *case) for case in cases(n))
    return dict(task_id=f'Own/{i}', prompt=prompt, entry_point=name, canonical_solution=f'    {right}\n',
                wrong_solution=f'    {wrong}\n',
                test=f"\n\nMETADATA = {{'author': 'llmft'}}\n\n\ndef check(candidate):\n{tests}\n")


HUMAN_EVAL = [_problem(i) for i in range(164)]

MBPP = [
    dict(task_id=1, text='Write a function to find the volume of a box.',
         code='def volume(a, b, c):\r\n  return a * b * c',
         wrong='def volume(a, b, c):\n  return a + b + c', test_setup_code='', challenge_test_list=[],
         test_list=['assert volume(1, 2, 3) == 6', 'assert volume(5, 7, 3) == 105']),
    dict(task_id=2, text='Write a function `sum` of two numbers.', code='def sum(a, b):\n    return a + b',
         wrong='def sum(a, b):\n    return a', test_setup_code='', test_list=['assert sum(10, 15) == 25']),
    dict(task_id=3, prompt='Is the area of a circle close to that?',
         code='def area(r):\n    return 3.141592653589793 * r ** 2',
         wrong='def area(r):\n    return r ** 2', test_imports=['import math'],
         test_list=['assert math.isclose(area(10), 314.1592653589793, rel_tol=0.001)']),
    dict(task_id=4, text='Find the height of a tree.', test_setup_code='root = Node(1)\nroot.left = Node(2)',
         code='class Node:\n    def __init__(self, v):\n        self.v, self.left, self.right = v, None, None\n'
              'def height(n):\n    return 0 if n is None else 1 + max(height(n.left), height(n.right))',
         wrong='class Node:\n    def __init__(self, v):\n        self.v, self.left, self.right = v, None, None\n'
               'def height(n):\n    return 1',
         test_list=['assert height(root) == 2', 'root.left.left = Node(3)', 'assert height(root) == 3'])]
