//! Inputs that are text: tokenizers, constraints, and outputs of models in pieces (a byte 1 ends a piece).

const BPE: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":8,"content":"<|im_end|>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{N}{1,3}|\\s+|[^\\s\\p{N}]+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]},
"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<|im_end|>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],"special_tokens":{"<|im_end|>":{"id":"<|im_end|>","ids":[8],"tokens":["<|im_end|>"]}}},
"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,
"vocab":{"H":0,"e":1,"l":2,"o":3,"Ġ":4,"He":5,"1":6,"Ċ":7},"merges":[["H","e"]]}}"#;
const SENTENCEPIECE: &str = r#"{"version":"1.0","added_tokens":[{"id":0,"content":"<unk>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]},"pre_tokenizer":null,"post_processor":null,
"decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},
"model":{"type":"BPE","unk_token":"<unk>","fuse_unk":true,"byte_fallback":true,"vocab":{"<unk>":0,"<0x0A>":1,"▁":2,"H":3,"e":4,"He":5},"merges":["H e"]}}"#;
const UNIGRAM: &str = r#"{"version":"1.0","added_tokens":[],"normalizer":{"type":"NFKC"},"pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},
"post_processor":{"type":"RobertaProcessing","sep":["</s>",1],"cls":["<s>",0],"trim_offsets":true,"add_prefix_space":true},"decoder":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always"},
"model":{"type":"Unigram","unk_id":2,"vocab":[["<s>",0.0],["</s>",0.0],["<unk>",0.0],["▁",-1.0],["H",-2.0],["ello",-3.5]],"byte_fallback":false}}"#;
const WORDPIECE: &str = r#"{"version":"1.0","added_tokens":[],"normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true},"pre_tokenizer":{"type":"BertPreTokenizer"},
"post_processor":{"type":"BertProcessing","sep":["[SEP]",1],"cls":["[CLS]",0]},"decoder":{"type":"WordPiece","prefix":"\#\#","cleanup":true},
"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"\#\#","max_input_chars_per_word":100,"vocab":{"[CLS]":0,"[SEP]":1,"[UNK]":2,"hello":3,"w":4,"\#\#orld":5}}}"#;

const GRAMMARS: [&str; 12] = [
    r#"s{"type":"object","properties":{"a":{"type":"integer","minimum":-5,"maximum":99},"b":{"type":"string","pattern":"^[a-z]{2,4}$"}},"required":["a"],"additionalProperties":false}"#,
    r##"s{"$defs":{"n":{"type":"array","items":{"$ref":"#/$defs/n"},"maxItems":3}},"$ref":"#/$defs/n"}"##,
    r#"s{"anyOf":[{"const":null},{"enum":["x",1,[true]]},{"type":"number","multipleOf":0.5}]}"#,
    r#"s{"allOf":[{"properties":{"a":{"type":"string","format":"date-time"}}},{"required":["a"]}],"patternProperties":{"^x-":{"type":"boolean"}}}"#,
    r#"s{"type":["string","null"],"minLength":1,"maxLength":5}"#,
    r#"s{"oneOf":[{"type":"object","properties":{"k":{"const":"a"}},"required":["k"]},{"type":"object","properties":{"k":{"const":"b"}},"required":["k"]}]}"#,
    r#"s{"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],"items":false,"uniqueItems":true,"minItems":2}"#,
    r"r[a-c]+(x|yz){2,3}\d?",
    r"r(?i:h\u00e9llo)|\p{L}{1,8}\s*$",
    "lstart: item+\nitem: /[0-9]+/ | \"(\" item \")\" | json\njson: %json {\"type\": \"boolean\"}\n",
    "lstart[max_tokens=5]: \"a\"* B?\nB: /b{2,}/ & /[bc]+/\n",
    "cyes\nno\nmaybe \"so\"",
];

/// In the order of [`fastchat_engine::text::tools::ToolFormat::ALL`].
const CALLS: [&str; 25] = [
    "ok <tool_call>\n{\"name\": \"weather\", \"argu\u{1}ments\": {\"city\": \"Pa\\\"ris\"}}\n</tool_call>\n<tool_call>{\"name\":\"now\"}</tool_call>",
    "<|python_tag|>{\"name\": \"weather\", \u{1}\"parameters\": {\"days\": 3}}; {\"name\": \"now\", \"parameters\": {}}",
    "[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": {\"city\": \"P\u{1}aris\"}, \"id\": \"123456789\"}, {\"name\": \"now\", \"arguments\": {}}]",
    "[TOOL_CALLS]weather[CALL_ID]123456789[ARGS]{\"city\": \"\u{1}Paris\"}[TOOL_CALLS]now[ARGS]{}",
    "[weather(city='Pa\\'ris', \u{1}days=-3, near=[1.5, None, True, {'a': (1, 2)}]), now()]",
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"days\": 3}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"P\"}\u{1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{\"days\":\u{1} 3}<|tool_call_end|><|tool_calls_section_end|>",
    "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"days\":3}<|call|>",
    "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=near>\n[1, \u{1}2]\n</parameter>\n</function>\n</tool_call>",
    "<|tool_call|>[{\"name\": \"weather\", \"arguments\": {\"days\": 1e3}}]",
    "functools[{\"name\": \"weather\", \"arguments\": {\"city\": \"\\u00e9\"}}]<|/tool_call|>",
    "<TOOLCALL>[{\"name\": \"weather\", \"arguments\": {}}]\u{1}</TOOLCALL> more",
    "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key><arg_value>3</arg_value></tool_call>",
    "<seed:tool_call>\n<function=weather>\n<parameter=city>Pa\u{1}ris</parameter>\n</function>\n</seed:tool_call>",
    "<tool_calls>\n{\"name\": \"weather\", \"arguments\": {}}\u{1}\n{\"name\": \"now\", \"arguments\": {}}\n</tool_calls>",
    "<minimax:tool_call>\n<invoke name=\"weather\">\n<parameter name=\"city\">\u{1}P</parameter>\n</invoke>\n<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>",
    "<atem:function_calls>\n<atem:invoke name=\"weather\">\n<atem:parameter name=\"days\">\u{1}3</atem:parameter>\n</atem:invoke>\n</atem:function_calls>",
    "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"weather\">\n<｜DSML｜parameter name=\"days\" string=\"false\">\u{1}3</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
    "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"weather\">\n<｜DSML｜parameter name=\"city\" string=\"true\">P\u{1}</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
    "<tool_calls>[{\"name\": \"weather\", \"arguments\": {}\u{1}}]</tool_calls>",
    "ok <|tool_call_start|>[weather(city=\"P\"\u{1}), now()]<|tool_call_end|>",
    "<function=weather>{\"days\": \u{1}3}</function>",
    "<start_function_call>call:weather{city:<escape>P\u{1}}<escape>,near:[1,{a:null}]}<end_function_call>",
    "<|tool_call>call:weather{city:<|\"|>P<|\"|>\u{1},days:3}<tool_call|><|tool_response>",
];

fn numbered(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().zip(0u8..).map(|(text, number)| [&[number], text.as_bytes()].concat()).collect()
}

/// Target and its inputs.
pub fn corpora() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let bytes = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    let wordpiece = WORDPIECE.replace("\\#", "#");
    let thoughts = ["hm</think>a", "<think>hm\u{1}</think>\n\na", "<think>", "[THINK]x[/THI\u{1}NK]y", "  [THINK]x"];
    let stops =
        ["\u{0}a\u{1}b", "</s>\u{0}text </\u{1}s> more", "é\u{0}aé\u{0}\u{0}xaaé\u{1}é", "aab\u{0}ab\u{0}aaaab"];
    let tokens: [&[u8]; 4] = [
        b"\x00He\xc3\xa9llo",
        b"\x01\xf0\x9f\x99\x82\xff\x01\xff\x02 ",
        b"\x00\xff\x03\xe4\xbd\xff\x05\xa0",
        b"\x00\xe4\xff\xff",
    ];
    vec![
        ("tokenizer_json", bytes(&[BPE, SENTENCEPIECE, UNIGRAM, &wordpiece])),
        ("grammar", bytes(&GRAMMARS)),
        ("tools", numbered(&CALLS)),
        ("reasoning", numbered(&thoughts)),
        ("stop", numbered(&stops)),
        ("detokenizer", tokens.map(<[u8]>::to_vec).to_vec()),
    ]
}
