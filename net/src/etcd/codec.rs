//! Protocol buffers in gRPC, with buffers of the size that most messages have.
//!
//! tonic's own codec takes 8 KiB for each request and 8 KiB for each answer, and a stream keeps both for as long as it lasts. What comes
//! this way is mostly small (the calls with large values do not come this way: [`super::unary`]); what is larger grows them.

use prost::Message;
use std::marker::PhantomData;
use tonic::codec::BufferSettings;
use tonic_prost::ProstCodec;

/// Bytes for a request that is read. Half of it is for the message: tonic asks for its length once more.
const READ_BYTES: usize = 128;
/// Bytes for an answer that is written.
const WRITE_BYTES: usize = 128;
/// tonic's default: a stream's messages are sent once there are so many bytes of them.
const YIELD_BYTES: usize = 32 * 1024;

/// Reads `U`, writes `T`.
#[derive(Debug)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Send + 'static, U: Message + Default + Send + 'static> tonic::codec::Codec for Codec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as tonic::codec::Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as tonic::codec::Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(WRITE_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(READ_BYTES, YIELD_BYTES))
    }
}
