"""Items in the form that MultiPL-E gives them in each language: the right answer passes, a wrong one does not."""

from __future__ import annotations

import pytest

from emma.tools.evaluation.benchmarks.definitions import get_benchmark
from emma.tools.evaluation.benchmarks.items import Item, program_of, render
from emma.tools.evaluation.sandbox.toolchains import Executor

SLOW = ("cpp", "csharp", "go", "java", "rust", "typescript")

# Language → prompt, right answer, wrong answer, tests, texts that end an answer.
ITEMS = {
    "bash": (
        "#!/bin/bash\n# Adds two numbers.\n#\n# $1 is an integer\n# $2 is an integer\nadd() {\n",
        "    echo $(($1 + $2))",
        "    echo $(($1 - $2))",
        "}\n\ncandidate() {\n    add \"$@\"\n}\n\nset -e\nrun_test() {\n    [[ $(candidate \"2\" \"3\") = \"5\" ]]\n}\n\nrun_test",
        ["\n}"],
    ),
    "cpp": (
        "#include<assert.h>\n#include<bits/stdc++.h>\n// Adds two numbers.\nlong add(long x, long y) {\n",
        "    return x + y;",
        "    return x - y;",
        "}\nint main() {\n    auto candidate = add;\n    assert(candidate((2), (3)) == (5));\n}\n",
        ["\n}"],
    ),
    "csharp": (
        "using System;\nusing System.Numerics;\nusing System.Diagnostics;\nusing System.Collections.Generic;\nusing System.Linq;\n"
        "using System.Text;\nusing System.Security.Cryptography;\nclass Problem {\n    // Adds two numbers.\n"
        "    public static long Add(long x, long y) {\n",
        # mcs warns of the unused one: that is no failure.
        "        int unused;\n        return x + y;",
        "        return x - y;",
        "    }\n    public static void Main(string[] args) {\n    Debug.Assert(Add((2L), (3L)) == (5L));\n    }\n\n}\n",
        ["\n    }\n"],
    ),
    "go": (
        "package add_test\n\nimport (\n    \"testing\"\n    \"fmt\"\n)\n\n// Adds two numbers.\nfunc add(x int, y int) int {\n",
        "    return x + y\n}",
        "    return x - y\n}",
        "func TestAdd(t *testing.T) {\n  candidate := add\n\ttype test struct {\n\t\tactual   interface{}\n\t\texpected interface{}\n"
        "\t}\n   tests := []test{\n     { actual: candidate(2, 3), expected: 5 },\n   }\n\n\tfor i, tc := range tests {\n"
        "\t\tt.Run(fmt.Sprintf(\"test num % d\", i), func(t *testing.T) {\n\t\t\tif fmt.Sprintf(\"%v\", tc.actual) != "
        "fmt.Sprintf(\"%v\", tc.expected) {\n\t\t\t\tt.Errorf(\"expected '%s', got '%s'\", tc.expected, tc.actual)\n\t\t\t}\n"
        "\t\t})\n\t}\n}\n",
        ["\nfunc", "struct", "\n// "],
    ),
    "java": (
        "import java.util.*;\nimport java.lang.reflect.*;\nimport java.security.*;\nimport java.math.*;\nimport java.io.*;\n"
        "import java.util.stream.*;\nclass Problem {\n    // Adds two numbers.\n    public static long add(long x, long y) {\n",
        "        return x + y;",
        "        return x - y;",
        "    }\n    public static void main(String[] args) {\n    assert(add((2l), (3l)) == (5l));\n    }\n\n}\n",
        ["\n    }\n"],
    ),
    "javascript": (
        "//Adds two numbers.\nfunction add(x, y){\n",
        "  return x + y;\n}",
        "  return x - y;\n}",
        "const assert = require('node:assert');\n\n\nfunction test() {\n  let candidate = add;\n  assert.deepEqual(candidate(2, 3),5);\n}\n\ntest();",
        ["\nfunction ", "\n/*", "\n//", "\nconsole.log"],
    ),
    "julia": (
        "\"\"\"Adds two numbers.\"\"\"\nfunction add(x::Int64, y::Int64)::Int64 \n",
        "    return x + y\nend",
        "    return x - y\nend",
        "using Test\n\n@testset begin\n\ncandidate = add;\n\t@test(candidate(2, 3) == 5)\nend\n",
        ["\nfunction", "\nmacro", "\n\n"],
    ),
    "lua": (
        "-- Adds two numbers.\nlocal function add(x, y)\n",
        "  return x + y\nend",
        "  return x - y\nend",
        "lu = require('luaunit')\n\nfunction test_humaneval()\nlocal candidate = add\n    lu.assertEquals(candidate(2, 3), 5)\nend\n\n"
        "os.exit(lu.LuaUnit.run())",
        ["\nlocal", "\nfunction", "\n--", "\n\n"],
    ),
    "perl": (
        "# Adds two numbers.\nsub add {\n    my($x, $y) = @_;\n",
        "    return $x + $y;\n}",
        "    return $x - $y;\n}",
        "use Test::Deep;\n\n\nsub testhumaneval {\n    my $candidate = \\&add;\n        if(eq_deeply($candidate->(2, 3),5)) {\n"
        "        print \"ok!\" }else{\n        exit 1;\n        }\n}\n\ntesthumaneval();",
        ["\nsub", "\n#", "\n\n"],
    ),
    "php": (
        "<?php\n// Adds two numbers.\nfunction add($x, $y) {\n",
        "    return $x + $y;\n}",
        "    return $x - $y;\n}",
        "function candidate(...$args) {\n    return add(...$args);\n}\n\nfunction test(): void {\n"
        "    if (candidate(2, 3) !== 5) { throw new Exception(\"Test failed!\"); }\n}\n\ntest();",
        ["\nfunction", "\n?>", "\n//", "\n#"],
    ),
    "r": (
        "# Adds two numbers.\nadd <- function(x, y) {",
        "\n    return(x + y)\n}",
        "\n    return(x - y)\n}",
        "test_humaneval <- function() {\ncandidate <- add\n    if(!identical(candidate(2, 3), 5)){quit('no', 1)}\n}\ntest_humaneval()",
        ["\n#", "\n```"],
    ),
    "racket": (
        "#lang racket\n\n;; Adds two numbers.\n(define (add x y)\n",
        "  (+ x y))",
        "  (- x y))",
        "(require rackunit)\n\n(define (test-humaneval) \n\n  (let (( candidate add))\n    (check-within (candidate 2 3) 5 0.001)\n))\n\n(test-humaneval)",
        ["\n(define ", "\n#|", "\n;", "\n("],
    ),
    "ruby": (
        "# Adds two numbers.\ndef add(x, y)\n",
        "  x + y\nend",
        "  x - y\nend",
        "require 'test/unit'\nclass TestHumanEval < Test::Unit::TestCase\n  def test_add\n    candidate = method(:add)\n"
        "    assert_equal(5, candidate.call(2, 3))\n  end\nend\n",
        ["\nclass", "\ndef", "\n#", "\n\n"],
    ),
    "rust": (
        "/// Adds two numbers.\nfn add(x: isize, y: isize) -> isize {\n",
        "    x + y",
        "    x - y",
        "}\n\nfn main() {\n    let candidate = add;\n    assert_eq!(candidate(2, 3), 5);\n}\n",
        ["\n}"],
    ),
    "typescript": (
        "//Adds two numbers.\nfunction add(x: number, y: number): number {\n",
        "  return x + y;\n}",
        "  return x - y;\n}",
        "declare var require: any;\nconst assert = require('node:assert');\n\n\nfunction test() {\n  let candidate = add;\n"
        "  assert.deepEqual(candidate(2, 3),5);\n}\n\ntest();",
        ["\nfunction ", "\n/*", "\n//", "\nclass"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in ITEMS]
)
def test_right_and_wrong_answers(name: str, with_files: Executor) -> None:
    if (why := with_files.lack(name)) is not None:
        pytest.skip(f"{name}: {why}")
    benchmark = get_benchmark(f"multipl_e_{name}")
    prompt, right, wrong, tests, ends = ITEMS[name]
    item: Item = render(
        benchmark, "eng_Latn", {"name": "one", "prompt": prompt, "tests": tests, "stop_tokens": ends}
    )
    # A model goes on after its answer; what it goes on with is cut.
    answers = [right, f"{right}{ends[0]} more ((", wrong]
    programs = [program_of(benchmark, "eng_Latn", item, answer) for answer in answers]
    runs = with_files.run(name, programs)
    assert [run.passed for run in runs] == [True, True, False], [run.describe() for run in runs]
