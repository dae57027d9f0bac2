//! BERT: the standard encoder.

use super::encoder_base::standard;
use super::meta::Meta;
use crate::ModelError;
use crate::encoder_spec::EncoderDescription;

pub fn describe(m: &Meta) -> Result<EncoderDescription, ModelError> {
    standard(m)
}
