//! Rows of an embedding table, in plain candle.

use candle_core::{Result, Tensor, bail};

use crate::Linear;

/// Checks that every id names a row of `table`.
pub(crate) fn check_ids(table: &Linear, ids: &[u32]) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= table.out_features) {
        Some(id) => bail!("token id {id} leaves the table of {} rows", table.out_features),
        None => Ok(()),
    }
}

pub(super) fn embed(table: &Linear, ids: &[u32]) -> Result<Tensor> {
    check_ids(table, ids)?;
    let parts = table.parts.iter().map(|part| part.dense().cloned()).collect::<Result<Vec<_>>>()?;
    let dense = Tensor::cat(&parts, 0)?;
    let ids = Tensor::from_slice(ids, ids.len(), dense.device())?;
    dense.index_select(&ids, 0)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::embed;
    use crate::{Weight, WeightKind};

    #[test]
    fn looks_rows_up() {
        let bytes: Vec<u8> = [1f32, 2., 3., 4., 5., 6.].iter().flat_map(|value| value.to_le_bytes()).collect();
        let table = Weight::new(WeightKind::F32, 3, 2, bytes.into()).unwrap();
        let table = super::super::linear::pack(&[table], None, &Device::Cpu, DType::F32).unwrap();
        let rows = embed(&table, &[2, 0, 2]).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(rows, [[5., 6.], [1., 2.], [5., 6.]]);
        assert!(embed(&table, &[3]).is_err());
    }
}
