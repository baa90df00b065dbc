//! Templates that end, and templates that do not.

use super::*;

#[test]
fn generation_blocks_keep_the_white_space_around_them() {
    let (text, has) = with_marks("a{%- generation -%}b{% endgeneration %}{% if x %}{% endif %}");
    assert!(has);
    assert_eq!(
        text,
        "a{%- filter generation -%}b{%  endfilter  %}{% if x %}{% endif %}"
            .replace("{%- filter generation -%}", "{%-  filter generation  -%}")
    );
    assert!(!with_marks("{% if add_generation_prompt %}").1);
}

fn hi() -> Conversation {
    let value: Value = serde_json::from_str(r#"[{"role": "user", "content": "hi"}]"#).unwrap();
    Conversation::new(&value, Value::from(())).unwrap()
}

/// A template with two lists, equal, that each name the one before twice.
fn doubled(end: &str) -> String {
    let list = |name: &str| {
        let twice = format!("{{% set {name} = [{name}, {name}] %}}");
        format!("{{% set {name} = [1] %}}{}", twice.repeat(60))
    };
    format!("{}{}{end}", list("x"), list("y"))
}

/// What comes of a template.
fn rendered(text: &str) -> Result<String, ChatError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("chat_template.jinja"), text).unwrap();
    let template = ChatTemplate::load(dir.path(), None)?;
    with_deep_stack(|| template.render(&hi(), 1, false))
}

#[test]
fn a_template_that_does_not_end_is_stopped() {
    for text in [
        "{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include 'default' %}",
        "{% extends 'default' %}",
        "{% import 'default' as again %}",
        "{{ 'x' * 99999999999 }}",
        "{{ range(99999999999) }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ strftime_now('%200Y' * 1000000) }}",
        "{{ 'y'.replace('', 'x' * 1000000) * 1000000 }}",
        // A list may name one text as often as it likes.
        "{{ ','.join(['x' * 1000000] * 100000) }}",
        "{{ (['x' * 1000000] * 100000) | join }}",
        "{{ (['x' * 1000000] * 100000) | trim }}",
        "{{ (['x' * 1000000] * 100000) | tojson }}",
        "{{ (['x' * 1000000] * 100000) | string }}",
        "{{ (['x' * 1000000] * 100000) | upper }}",
        "{{ ['x' * 1000000] * 100000 }}",
        "{{ range(99999) | list | tojson(separators=('x' * 1000000, ':')) }}",
        "{% set s = 'x' * 1000000 %}{{ ([s] * 100000).count(s ~ '') }}",
        "{% set s = 'x' * 1000000 %}{{ s.startswith([s ~ 'x'] * 100000) }}",
        "{{ ['x' * 1000000] * 100000 ~ '' }}",
        "{% set s = ['x' * 1000000] * 100000 %}{{ '' ~ s }}",
        "{% set s = ['x' * 1000000] * 100000 %}{{ s in 'x' }}",
        "{% set s = ['x' * 1000000] * 100000 %}{{ s | replace('x', 'y') }}",
        "{% set s = ['x' * 1000000] * 100000 %}{{ 'x' | replace(s, s) }}",
        "{% set s = ['x' * 1000000] * 100000 %}{{ s | indent(2) }}",
        "{% set s = ['x' * 1000000] * 100000 %}{{ s | pprint }}",
        "{% set s = ['x' * 1000000] * 100000 %}{{ s | lines }}",
        "{% set s = ['x' * 1000000] * 100000 %}{{ '{}'.format(s) }}",
        "{% set s = ['x' * 1000000] * 100000 %}{{ '%s' | format(s) }}",
        "{% set s = ['x' * 1000000] * 100000 %}{{ 'x'.split(s) }}",
        "{% set s = ['x' * 1000000] * 100000 %}{{ s | sort | length }}",
        "{% set s = ['x' * 1000000] * 100000 %}{{ s | unique | length }}",
        "{% set s = ['x' * 1000000] * 100000 %}{{ [s] | map('string') | list }}",
        "{% set s = ['x' * 1000000] * 100000 %}{{ [s] | select('startingwith', 'x') | list }}",
        "{% set s = ['x' * 1000000] * 100000 %}{% set t %}{{ s }}{% endset %}",
        "{% set s = ['x' * 1000000] * 100000 %}{{ s | generation }}",
        "{{ 'x' | indent(99999999999) }}",
        "{{ ('x\n' * 100000) | indent(width=100000) }}",
        "{{ ('x' * 1000000) | replace('', 'x' * 1000000) }}",
        "{{ ('x' * 1000000) | replace('x', 'x' * 1000000, 100000) }}",
        "{{ (['x' * 10000] * 6000) | sum(start='') }}",
        // Texts that are compared as often as there are instructions.
        "{% set a = 'x' * 20000000 ~ 'y' %}{% set b = 'x' * 20000000 ~ 'y' %}{% for i in range(90000) %}{% if a == b and a <= b %}{% endif %}{% endfor %}",
        "{% set a = 'x' * 20000000 ~ 'y' %}{% set b = 'x' * 20000000 ~ 'y' %}{% for i in range(90000) %}{% if a is eq b %}{% endif %}{% endfor %}",
        "{% set a = 'x' * 20000000 %}{% for i in range(90000) %}{% if a is lower %}{% endif %}{% endfor %}",
        "{% set a = 'x' * 20000000 %}{% set m = {a: 1} %}{% for i in range(90000) %}{{ m[a] }}{% endfor %}",
        // Each of these is walked through in 2 ^ 60 steps.
        &doubled("{{ x }}"),
        &doubled("{{ x ~ '' }}"),
        &doubled("{{ x | string }}"),
        &doubled("{{ x | tojson }}"),
        &doubled("{{ x | pprint }}"),
        &doubled("{{ x == y }}"),
        &doubled("{{ x < y }}"),
        &doubled("{{ 1 < 2 != 3 and x == y == y }}"),
        &doubled("{{ x in [y] }}"),
        &doubled("{{ [x] in [y] == [y] }}"),
        &doubled("{{ {x: 1} }}"),
        &doubled("{{ messages[0][x] }}"),
        &doubled("{{ messages[0].get(x) }}"),
        &doubled("{{ [x].count(y) }}"),
        &doubled("{{ [x, y] | sort }}"),
        &doubled("{{ [x, y] | unique | length }}"),
        &doubled("{{ [x, y] | min }}"),
        &doubled("{{ [x] | select('eq', y) | list | length }}"),
        &doubled("{{ [{'k': x}, {'k': y}] | groupby('k') }}"),
        &doubled("{{ {'a': x, 'b': y} | dictsort(by='value') }}"),
        &doubled("{% for z in [x, y, x] %}{{ loop.changed(z) }}{% endfor %}"),
        &doubled("{% set ns = namespace() %}{% set ns.x = x %}"),
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        // Circles.
        "{% set ns = namespace(x=1) %}{% set ns.x = ns %}{{ ns }}",
        "{% set ns = namespace(x=1) %}{% set ns.x = [{'a': ns}] %}{{ ns.x }}",
        "{% set ns = namespace(x=1) %}{% set b = namespace(x=ns) %}{% set ns.x = b %}{{ ns ~ b }}",
        "{% set ns = namespace() %}{% for x in [1, 2, 3, ns] %}{% set ns.x = loop %}{% endfor %}",
        "{{ debug() }}",
        "{{ debug(messages) }}",
    ] {
        let begin = std::time::Instant::now();
        let error = rendered(text).expect_err(text);
        assert!(matches!(error, ChatError::Render { .. }), "{text}: {error}");
        let took = begin.elapsed().as_secs();
        assert!(took < 20, "{took} s: {text}");
    }
}

/// What looks at the operands of an operator puts them back as they were.
#[test]
fn operators_compute_what_they_do_without_a_look() {
    let cases = [
        ("{{ 'a' ~ 1 ~ [2] }}", "a1[2]"),
        (
            "{% set x = 3 %}{{ 1 < x }}{{ x < 1 }}{{ 1 < x < 5 }}{{ 1 < x < 2 }}",
            "TrueFalseTrueFalse",
        ),
        (
            "{% set x = 'b' %}{{ x in 'abc' }}{{ x in ['a'] }}{{ x not in {x: 1} }}",
            "TrueFalseFalse",
        ),
        (
            "{% set x = 'k' %}{{ {x: 1, 'l': 2} }}{{ {x: [3]}['k'][0] }}",
            "{'k': 1, 'l': 2}3",
        ),
        (
            "{% set x = [1] %}{{ x == [1] }}{{ x != [1] }}{{ x >= [2] }}",
            "TrueFalseFalse",
        ),
        (
            "{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{{ loop.cycle('a', 'b') }} {% endfor %}",
            "Truea Falseb Truea ",
        ),
        (
            "{% macro m(x, n=2) %}{% if n == 0 %}.{% else %}{{ x ~ m(x, n - 1) }}{% endif %}{% endmacro %}{{ m('a') }}",
            "aa.",
        ),
        (
            "{% set ns = namespace(n=0, l=[]) %}{% for x in range(4) if x != 2 %}{% set ns.n = ns.n + x %}\
                 {% set ns.l = ns.l + [x] %}{% else %}none{% endfor %}{{ ns.n }}{{ ns.l }}",
            "4[0, 1, 3]",
        ),
        (
            "{% block b %}{% for x in [1, 2] %}{% if x == 1 %}{% continue %}{% endif %}{{ x ~ '' }}{% endfor %}{% endblock %}",
            "2",
        ),
        (
            "{% for x in [[1, [2]]] recursive %}{{ loop(x) if x is iterable else x ~ ',' }}{% endfor %}",
            "1,2,",
        ),
        (
            "{{ 'x-x-x' | replace('-', '+', 1) }}{{ 'aa' | replace('a', 'b', count=1) }}{{ 'aa' | replace('a', 'b') }}",
            "x+x-xbabb",
        ),
        (
            "{{ 'a\nb' | indent(2) }}{{ 'a\nb' | indent(width=1, first=true) }}",
            "a\n  b a\n b",
        ),
        (
            "{{ [3, 1] | sort }}{{ [1, 1] | unique | list }}{{ [1, 2] | sum }}{{ [[1], [2]] | sum(start=[]) }}",
            "[1, 3][1]3[1, 2]",
        ),
        (
            "{{ [1, 2] | select('gt', 1) | list }}{{ ['b'] is eq(['b']) }}{{ 'a' is in(['a']) }}",
            "[2]TrueTrue",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(rendered(text).expect(text), expected, "{text}");
    }
}

/// Each of these takes a stack that grows with its length.
#[test]
fn a_template_that_is_deep_does_not_end_the_process() {
    let repeated = |count: usize, begin: &str, middle: &str, end: &str| {
        let many = middle.repeat(count);
        format!("{begin}{many}{end}")
    };
    let nested = "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}";
    let many = [900, 50_000].map(|count| {
        [
            repeated(count, "{{ ", "(", " }}"),
            repeated(count, "{{ ", "[", " }}"),
            repeated(count, "{{ ", "-", "1 }}"),
            repeated(count, "{{ ", "not ", "1 }}"),
            repeated(count, "{{ 1", "+1", " }}"),
            repeated(count, "{{ 1", "**1", " }}"),
            repeated(count, "{{ 1", "~1", " }}"),
            repeated(count, "{{ 1", " and 1", " }}"),
            repeated(count, "{{ 1", " if 1 else 1", " }}"),
            repeated(count, "{{ x", "|trim", " }}"),
            repeated(count, "{{ x", ".a", " }}"),
            repeated(count, "{{ x", "[0]", " }}"),
            repeated(count, "{{ x", "()", " }}"),
            repeated(count, "", "{% if x %}", ""),
            repeated(count, "{% if x %}", "{% elif x %}", "{% endif %}"),
            repeated(count, "", "{% for x in messages %}", ""),
        ]
    });
    let values = [
        format!("{nested}{{{{ ns.x }}}}"),
        format!("{nested}{{{{ ns.x | tojson }}}}"),
        format!("{nested}{{{{ ns.x == [ns.x] }}}}"),
        format!("{nested}{{{{ ns.x | string }}}}"),
        format!("{nested}{{{{ ns.x | tojson(sort_keys=true) }}}}"),
    ];
    for text in many.into_iter().flatten().chain(values) {
        // It may be refused, or be nothing bad.
        if let Err(error) = rendered(&text) {
            let said = error.to_string();
            assert!(said.len() < 2000, "{} bytes of words", said.len());
        }
    }
}

#[test]
fn the_words_of_a_template_are_passed_on_up_to_a_length() {
    let error = rendered("{{ raise_exception('no ' * 100000) }}").unwrap_err();
    assert!(matches!(&error, ChatError::Refused { said } if said.starts_with("no no")));
    assert!(error.to_string().len() < 2000);
}

#[test]
fn a_share_gpt_message_gets_the_usual_names() {
    let value: Value = serde_json::from_str(r#"[{"from": "gpt", "value": "hi"}]"#).unwrap();
    let conversation = Conversation::new(&value, Value::from(())).unwrap();
    let message = &conversation.messages[0];
    assert_eq!(
        message.get_attr("role").unwrap().as_str(),
        Some("assistant")
    );
    assert_eq!(message.get_attr("content").unwrap().as_str(), Some("hi"));
}
