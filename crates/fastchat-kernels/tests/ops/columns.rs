//! Columns of stored matrices, as ranks cut them: the same elements, in whole blocks.

use fastchat_kernels::WeightKind;

use crate::data::Random;
use crate::weights::{DENSE, QUANTISED, weight};

#[test]
fn columns_are_the_same_elements() {
    let mut random = Random(5);
    for kind in QUANTISED.into_iter().chain(DENSE) {
        let (elements, _) = kind.block();
        let (rows, cols) = (3, 4 * elements);
        let whole = weight(kind, rows, cols, &mut random);
        let values = whole.to_f32().unwrap();
        for (start, end) in [(0, 4), (1, 3), (3, 4), (2, 2)] {
            let range = start * elements..end * elements;
            let own = whole.narrow_cols(range.clone()).unwrap();
            assert_eq!((own.kind(), own.rows(), own.cols()), (kind, rows, range.len()));
            let expected: Vec<u32> =
                values.chunks(cols).flat_map(|row| row[range.clone()].iter().map(|x| x.to_bits())).collect();
            assert_eq!(own.to_f32().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>(), expected, "{kind:?}");
        }
    }
}

#[test]
fn says_what_cannot_be_cut() {
    let whole = weight(WeightKind::Q4_K, 2, 512, &mut Random(5));
    for (range, problem) in [
        (0..128, "columns 0..128 are not whole blocks of 256, as Q4_K has them"),
        (256..768, "columns 256..768 of a matrix of 512 columns"),
    ] {
        let error = whole.narrow_cols(range).unwrap_err().to_string();
        assert!(error.starts_with(problem), "{error}");
    }
}
