//! The tags of the families that write a tag per parameter. Data only: the parser and the grammar read it alike.

/// How the name in a tag ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// With the tag.
    Bare,
    /// In a quote.
    Quoted,
    /// The same, and a parameter's tag says whether its value is text.
    Marked,
}

/// How a family spells calls.
#[derive(Debug)]
pub(super) struct Tags {
    /// Around functions.
    pub call: &'static str,
    pub call_end: &'static str,
    /// Before a function's name; its tag ends in `>`.
    pub function: &'static str,
    pub function_end: &'static str,
    /// Before a parameter's name.
    pub parameter: &'static str,
    pub parameter_end: &'static str,
    pub names: Names,
    /// A line break on either side of a value is not the value's.
    pub padded: bool,
    /// One pair of call tags is around all functions, not around each.
    pub shared: bool,
}

/// Qwen3-Coder, Nemotron 3, StepFun 3.5.
pub(super) static QWEN: Tags = Tags {
    call: "<tool_call>",
    call_end: "</tool_call>",
    function: "<function=",
    function_end: "</function>",
    parameter: "<parameter=",
    parameter_end: "</parameter>",
    names: Names::Bare,
    padded: true,
    shared: false,
};
pub(super) static SEED: Tags = Tags { call: "<seed:tool_call>", call_end: "</seed:tool_call>", padded: false, ..QWEN };
pub(super) static MINIMAX_M2: Tags = Tags {
    call: "<minimax:tool_call>",
    call_end: "</minimax:tool_call>",
    function: "<invoke name=\"",
    function_end: "</invoke>",
    parameter: "<parameter name=\"",
    names: Names::Quoted,
    padded: false,
    shared: true,
    ..QWEN
};
pub(super) static MUSE: Tags = Tags {
    call: "<atem:function_calls>",
    call_end: "</atem:function_calls>",
    function: "<atem:invoke name=\"",
    function_end: "</atem:invoke>",
    parameter: "<atem:parameter name=\"",
    parameter_end: "</atem:parameter>",
    shared: false,
    ..MINIMAX_M2
};
pub(super) static DEEPSEEK_V32: Tags = Tags {
    call: "<｜DSML｜function_calls>",
    call_end: "</｜DSML｜function_calls>",
    function: "<｜DSML｜invoke name=\"",
    function_end: "</｜DSML｜invoke>",
    parameter: "<｜DSML｜parameter name=\"",
    parameter_end: "</｜DSML｜parameter>",
    names: Names::Marked,
    ..MINIMAX_M2
};
pub(super) static DEEPSEEK_V4: Tags =
    Tags { call: "<｜DSML｜tool_calls>", call_end: "</｜DSML｜tool_calls>", ..DEEPSEEK_V32 };

/// An attribute of a parameter's tag, and what it says.
const IS_TEXT: [(&str, bool); 2] = [(" string=\"true\"", true), (" string=\"false\"", false)];

impl Tags {
    /// Name and kind of value out of what stands between a tag's beginning and its `>`.
    pub fn header<'a>(&self, header: &'a str) -> Option<(&'a str, Option<bool>)> {
        if self.names == Names::Bare {
            return (!header.is_empty()).then_some((header, None));
        }
        let (name, rest) = header.split_once('"')?;
        let says = IS_TEXT
            .iter()
            .find(|(spelling, _)| self.names == Names::Marked && rest == *spelling)
            .map(|&(_, is_text)| is_text);
        (!name.is_empty() && (says.is_some() || rest.is_empty())).then_some((name, says))
    }

    /// What follows a name.
    pub fn name_end(&self, is_text: Option<bool>) -> String {
        let says = IS_TEXT.iter().find(|(_, kind)| self.names == Names::Marked && Some(*kind) == is_text);
        let quote = if self.names == Names::Bare { "" } else { "\"" };
        format!("{quote}{}>", says.map_or("", |&(spelling, _)| spelling))
    }
}
