//! Pictures: from bytes to pixels, from pixels to rows of a decoder's stream. Described by data as decoders are; knows no
//! model names, no requests and no schedule.

pub mod decode;
mod features;
mod geometry;
mod pieces;
pub mod placement;
pub mod processor;
mod projector;
pub mod resample;
pub mod spec;
mod tower;
mod weights;

pub use decode::{Picture, PictureLimits};
pub use features::{CrossSequence, ImageFeatures, Media, Placed};
pub use placement::{Grid, Piece, Placement, RopeMap};
pub use processor::{Detail, Pixels};
pub use spec::{VisionDescription, VisionSpec};
pub use tower::{Encoding, VisionTower};
