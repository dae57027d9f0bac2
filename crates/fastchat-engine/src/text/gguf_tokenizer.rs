//! A tokenizer from the tables in a GGUF file: special tokens are cut out first, the rest goes to one of the models.

use fastchat_models::GgufVocab;

use super::TextError;
use super::bpe::BytePairs;
use super::sentencepiece::{SentencePiece, token_bytes};
use super::special_tokens::{Fragment, SpecialTokens};
use super::spellings::Spellings;
use super::split_patterns;
use super::token_table::TokenTable;
use super::unigram::Unigrams;
use super::wordpiece::WordPieces;

/// GGUF's numbers for kinds of tokens.
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// Encodes with a GGUF vocabulary.
#[derive(Debug)]
pub(crate) struct GgufTokenizer {
    specials: SpecialTokens,
    model: Algorithm,
    begin: Option<u32>,
    end: Option<u32>,
}

#[derive(Debug)]
enum Algorithm {
    BytePairs(Box<BytePairs>),
    SentencePiece { model: SentencePiece, space_before: bool },
    Unigrams(Box<Unigrams>),
    WordPieces(WordPieces),
}

/// Builds the encoder and the table of tokens.
pub(crate) fn build(vocab: &GgufVocab) -> Result<(GgufTokenizer, TokenTable), TextError> {
    let tokens = &vocab.tokens;
    if tokens.is_empty() {
        return Err(TextError::vocabulary("tokenizer.ggml.tokens", "is missing or empty"));
    }
    if !vocab.token_types.is_empty() && vocab.token_types.len() != tokens.len() {
        let message = format!("has {} entries, tokenizer.ggml.tokens has {}", vocab.token_types.len(), tokens.len());
        return Err(TextError::vocabulary("tokenizer.ggml.token_type", message));
    }
    for (field, id) in [("bos", vocab.bos), ("eos", vocab.eos), ("unknown", vocab.unk), ("padding", vocab.pad)] {
        if let Some(id) = id.filter(|&id| id as usize >= tokens.len()) {
            let message = format!("{id} is outside the vocabulary of {} tokens", tokens.len());
            return Err(TextError::vocabulary(&format!("tokenizer.ggml.{field}_token_id"), message));
        }
    }
    let names = Spellings::new(tokens.iter().map(String::as_str));
    let model = match vocab.model.as_str() {
        "gpt2" | "gemma4" | "whitespace" => {
            let pre = if vocab.model == "gemma4" { "gemma4" } else { vocab.pre.as_str() };
            Algorithm::BytePairs(Box::new(BytePairs::new(tokens, &vocab.merges, split_patterns::rules(pre)?)?))
        }
        "llama" => Algorithm::SentencePiece {
            model: SentencePiece::new(&names, &vocab.scores, vocab.unk)?,
            space_before: vocab.add_space_prefix,
        },
        "t5" => Algorithm::Unigrams(Box::new(Unigrams::new(vocab)?)),
        "bert" => Algorithm::WordPieces(WordPieces::new(tokens, vocab.unk)?),
        other => {
            let message = format!("unknown model '{other}'; known: gpt2, gemma4, whitespace, llama, t5, bert");
            return Err(TextError::vocabulary("tokenizer.ggml.model", message));
        }
    };
    let of_kind = |kinds: &[i32]| -> Vec<(u32, &str)> {
        let matching = vocab.token_types.iter().zip(tokens).enumerate().filter(|(_, (kind, _))| kinds.contains(kind));
        matching.map(|(id, (_, token))| (id as u32, token.as_str())).collect()
    };
    let specials = SpecialTokens::new(&of_kind(&[UNKNOWN, CONTROL]), &of_kind(&[USER_DEFINED]))?;
    let table = token_table(vocab, names, &model);
    let framed = matches!(model, Algorithm::WordPieces(_));
    let named = |name: &str| tokens.iter().position(|token| token == name).map(|id| id as u32);
    let begin = if framed { vocab.bos.or_else(|| named("[CLS]")) } else { vocab.bos.filter(|_| vocab.add_bos) };
    let end = if framed { named("[SEP]").or(vocab.eos) } else { vocab.eos.filter(|_| vocab.add_eos) };
    Ok((GgufTokenizer { specials, model, begin, end }, table))
}

fn token_table(vocab: &GgufVocab, names: Spellings, model: &Algorithm) -> TokenTable {
    let strips = match model {
        Algorithm::SentencePiece { space_before, .. } => *space_before,
        Algorithm::Unigrams(_) => vocab.add_space_prefix || vocab.remove_extra_whitespaces,
        Algorithm::WordPieces(_) => true,
        Algorithm::BytePairs(_) => false,
    };
    let mut table = TokenTable::new(strips);
    table.names = names;
    for (id, token) in vocab.tokens.iter().enumerate() {
        let kind = vocab.token_types.get(id).copied().unwrap_or(1);
        let special = matches!(kind, UNKNOWN | CONTROL);
        let bytes = match model {
            _ if special || kind == USER_DEFINED => token.clone().into_bytes(),
            Algorithm::BytePairs(_) if kind == BYTE => token_bytes(token),
            Algorithm::BytePairs(pairs) => pairs.bytes(token),
            Algorithm::SentencePiece { .. } | Algorithm::Unigrams(_) | Algorithm::WordPieces(_) => token_bytes(token),
        };
        table.spell(&bytes, special);
    }
    table
}

impl GgufTokenizer {
    /// `names` are the vocabulary's, out of the table that was built with this.
    pub(crate) fn encode(
        &self,
        names: &Spellings,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, TextError> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 2);
        ids.extend(self.begin.filter(|_| add_special));
        let mut after_token = true;
        for fragment in self.specials.cut(text, parse_special) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(text) => match &self.model {
                    Algorithm::BytePairs(model) => model.encode(text, &mut ids)?,
                    Algorithm::SentencePiece { model, space_before } => {
                        model.encode(names, text, *space_before && after_token, &mut ids);
                    }
                    Algorithm::Unigrams(model) => model.encode(text, &mut ids)?,
                    Algorithm::WordPieces(model) => model.encode(text, &mut ids)?,
                },
            }
            after_token = matches!(fragment, Fragment::Token(_));
        }
        ids.extend(self.end.filter(|_| add_special));
        Ok(ids)
    }
}
