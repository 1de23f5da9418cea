from advjax.report.markup import Markup, element, figure, joined, titled


def test_what_is_given_is_escaped_and_elements_are_not():
    inner = element("td", "a <b> & c")
    assert inner == "<td>a &lt;b&gt; &amp; c</td>"
    assert element("tr", inner, Markup("<td></td>")) == f"<tr>{inner}<td></td></tr>"
    assert element("p", 0.1 + 0.2, title='"x"') == '<p title="&quot;x&quot;">0.3</p>'
    assert joined("<", element("i", 1)) == "&lt;<i>1</i>"


def test_attributes_and_elements_without_content():
    assert element("ul", class_="a b", aria_label="c", id=None) == (
        '<ul class="a b" aria-label="c"></ul>'
    )
    assert element("img", alt="x") == '<img alt="x">'
    assert element("path", d="M0 0") == '<path d="M0 0"/>'
    assert element("path", element("title", "x"), d="M0 0") == (
        '<path d="M0 0"><title>x</title></path>'
    )


def test_headings_and_notes_are_there_only_where_they_say_something():
    assert titled("", "x") == "x" and titled("a", note="b") == '<h2>a</h2><p class="note">b</p>'
    assert figure("a", "x") == "<figure><h3>a</h3>x</figure>"
