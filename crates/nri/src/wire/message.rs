//! ttrpc's messages: a header of length, stream, kind and flags, then a request or a response.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::Message as _;

use super::WireError;

const HEADER: usize = 10;
/// ttrpc, "Message Frame": more data than this is to be rejected.
const MAX_DATA: usize = 4 << 20;
/// The longest message, header included.
pub(crate) const MAX_MESSAGE: usize = HEADER + MAX_DATA;
/// What a request's or response's envelope takes beside its payload, with room to spare.
const ENVELOPE: usize = 4096;
/// The longest payload that certainly fits.
pub(crate) const MAX_PAYLOAD: usize = MAX_DATA - ENVELOPE;

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// gRPC's status codes, as far as they mean something here.
pub(crate) const UNKNOWN: i32 = 2;
pub(crate) const INVALID_ARGUMENT: i32 = 3;
pub(crate) const RESOURCE_EXHAUSTED: i32 = 8;
pub(crate) const UNIMPLEMENTED: i32 = 12;

/// A call.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Request {
    #[prost(string, tag = "1")]
    pub(crate) service: String,
    #[prost(string, tag = "2")]
    pub(crate) method: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) payload: Bytes,
    /// How long the caller waits.
    #[prost(int64, tag = "4")]
    pub(crate) timeout_nano: i64,
}

/// Its answer.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Response {
    /// Absent, or with code 0, when the call succeeded.
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<Status>,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) payload: Bytes,
}

/// google.rpc.Status without its details.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Status {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

impl Status {
    pub(crate) fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// A message as it is taken from a stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Message {
    Request(u32, Request),
    Response(u32, Response),
    /// A kind that a call with one answer has no use for.
    Other,
}

/// A request in bytes; `None` when it is too long for any peer.
pub(crate) fn request(stream: u32, request: &Request) -> Option<Bytes> {
    encode(stream, REQUEST, request)
}

/// A response in bytes; one that is too long becomes an error that says so.
pub(crate) fn response(stream: u32, response: &Response) -> Bytes {
    encode(stream, RESPONSE, response).unwrap_or_else(|| {
        let status = Some(Status::new(RESOURCE_EXHAUSTED, "the answer is longer than a message can be"));
        encode(stream, RESPONSE, &Response { status, payload: Bytes::new() }).expect("this one is short")
    })
}

fn encode(stream: u32, kind: u8, body: &impl prost::Message) -> Option<Bytes> {
    let length = body.encoded_len();
    if length > MAX_DATA {
        return None;
    }
    let mut bytes = BytesMut::with_capacity(HEADER + length);
    bytes.put_u32(u32::try_from(length).ok()?);
    bytes.put_u32(stream);
    bytes.put_u8(kind);
    bytes.put_u8(0);
    body.encode(&mut bytes).ok()?;
    Some(bytes.freeze())
}

/// Takes messages out of one stream's bytes, whatever their pieces.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    received: BytesMut,
}

impl Messages {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// The next whole message.
    pub(crate) fn next(&mut self) -> Result<Option<Message>, WireError> {
        let Some(mut header) = self.received.get(..HEADER) else { return Ok(None) };
        let (length, stream, kind) = (header.get_u32(), header.get_u32(), header.get_u8());
        let data = length as usize;
        if data > MAX_DATA {
            return Err(WireError::Message(length));
        }
        if self.received.len() < HEADER + data {
            return Ok(None);
        }
        self.received.advance(HEADER);
        let data = self.received.split_to(data).freeze();
        Ok(Some(match kind {
            REQUEST => {
                let request = Request::decode(data).map_err(|_| WireError::Decode("request"))?;
                Message::Request(stream, request)
            }
            RESPONSE => {
                let response = Response::decode(data).map_err(|_| WireError::Decode("response"))?;
                Message::Response(stream, response)
            }
            _ => Message::Other,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_the_way_in_single_bytes() {
        let asked = Request {
            service: "nri.pkg.api.v1alpha1.Plugin".to_owned(),
            method: "Configure".to_owned(),
            payload: Bytes::from_static(b"payload"),
            timeout_nano: 5,
        };
        let mut messages = Messages::default();
        let bytes = request(3, &asked).unwrap();
        for byte in &bytes[..bytes.len() - 1] {
            messages.push(&[*byte]);
            assert_eq!(messages.next(), Ok(None));
        }
        messages.push(&bytes[bytes.len() - 1..]);
        assert_eq!(messages.next(), Ok(Some(Message::Request(3, asked))));
        assert_eq!(messages.next(), Ok(None));
    }

    #[test]
    fn what_is_too_long_is_not_sent_and_not_taken() {
        let payload = Bytes::from(vec![0; MAX_DATA + 1]);
        assert_eq!(request(1, &Request { payload: payload.clone(), ..Request::default() }), None);
        let mut messages = Messages::default();
        messages.push(&response(2, &Response { status: None, payload }));
        let Ok(Some(Message::Response(2, answer))) = messages.next() else { panic!("no response") };
        assert_eq!(answer.status.unwrap().code, RESOURCE_EXHAUSTED);
        messages.push(&[0xff; HEADER]);
        assert_eq!(messages.next(), Err(WireError::Message(u32::MAX)));
    }
}
