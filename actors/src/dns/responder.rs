//! Answers one question: who asks, the zone, and for guests the world. One for each listener.

use super::audience::{Audience, Place, audience};
use super::forward::{ForwardError, Forwarder, Question, Transport};
use super::limits::UDP_PAYLOAD;
use super::zone::{Answer, Zone};
use async_trait::async_trait;
use hickory_server::net::NetError;
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::{
    Edns, Header, HeaderCounts, LowerQuery, Message, MessageType, Metadata, OpCode, ResponseCode,
};
use hickory_server::proto::rr::Record;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use std::net::Ipv4Addr;
use std::sync::Arc;
use tokio::sync::watch;

/// The sections of an answer.
#[derive(Debug, Default)]
struct Reply {
    code: ResponseCode,
    authoritative: bool,
    recursion_available: bool,
    authentic: bool,
    truncated: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

impl Reply {
    fn code(code: ResponseCode) -> Self {
        Self { code, ..Self::default() }
    }
}

/// What answers at one listener.
#[derive(Clone, Debug)]
pub(super) struct Responder {
    pub(super) zone: watch::Receiver<Zone>,
    pub(super) place: Place,
    /// None on loopback: its askers have resolvers of their own.
    pub(super) forwarder: Option<Arc<Forwarder>>,
}

impl Responder {
    async fn reply(&self, request: &Request) -> Reply {
        let Ok(info) = request.request_info() else { return Reply::code(ResponseCode::FormErr) };
        if request.metadata.op_code != OpCode::Query {
            return Reply::code(ResponseCode::NotImp);
        }
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Reply::code(ResponseCode::BADVERS);
        }
        let asker = audience(self.place, request.src().ip());
        if asker == Audience::Stranger {
            return Reply::code(ResponseCode::Refused);
        }
        // Borrowed for the lookup alone: the keeper writes as soon as no reader is left.
        let answer = {
            let zone = self.zone.borrow();
            zone.answer(info.query.name(), info.query.query_class(), info.query.query_type())
        };
        let known = |code, answers, authorities| Reply {
            code,
            authoritative: true,
            recursion_available: self.forwarder.is_some() && asker != Audience::Host,
            answers,
            authorities,
            ..Reply::default()
        };
        match (answer, asker, &self.forwarder) {
            (Answer::Records(records), ..) => known(ResponseCode::NoError, records, Vec::new()),
            (Answer::NoData(soa), ..) => known(ResponseCode::NoError, Vec::new(), vec![*soa]),
            (Answer::NoName(soa), ..) => known(ResponseCode::NXDomain, Vec::new(), vec![*soa]),
            (Answer::Elsewhere, Audience::Guest(guest), Some(forwarder)) => {
                forward(forwarder, guest, request, info.query).await
            }
            (Answer::Refused | Answer::Elsewhere, ..) => Reply::code(ResponseCode::Refused),
        }
    }
}

async fn forward(forwarder: &Forwarder, guest: Ipv4Addr, request: &Request, query: &LowerQuery) -> Reply {
    let question = Question {
        query: query.original().clone(),
        recursion_desired: request.metadata.recursion_desired,
        checking_disabled: request.metadata.checking_disabled,
        dnssec_ok: request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
        transport: if request.protocol() == Protocol::Udp { Transport::Udp } else { Transport::Tcp },
    };
    match forwarder.ask(guest, &question).await {
        Ok(answer) => passed_on(answer),
        Err(error) => {
            match error {
                // A guest can bring these about as often as it likes: no place in a log that people read.
                ForwardError::Busy | ForwardError::Silent | ForwardError::Encode(_) | ForwardError::NoUpstream => {
                    tracing::debug!(%guest, %error, "a guest's question was not answered");
                }
                ForwardError::Entropy => tracing::error!(%error, "a guest's question was not answered"),
            }
            Reply { recursion_available: true, ..Reply::code(ResponseCode::ServFail) }
        }
    }
}

fn passed_on(answer: Message) -> Reply {
    Reply {
        code: answer.metadata.response_code,
        authoritative: false,
        recursion_available: true,
        authentic: answer.metadata.authentic_data,
        truncated: answer.metadata.truncation,
        answers: answer.answers,
        authorities: answer.authorities,
        additionals: answer.additionals,
    }
}

/// Our EDNS, for who sent theirs: never more than both sides can take.
fn edns_for(request: &Request) -> Option<Edns> {
    let theirs = request.edns.as_ref()?;
    let mut edns = Edns::new();
    edns.set_max_payload(request.max_payload().min(UDP_PAYLOAD)).set_version(0);
    edns.set_dnssec_ok(theirs.flags().dnssec_ok);
    Some(edns)
}

#[async_trait]
impl RequestHandler for Responder {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut handle: R) -> ResponseInfo {
        let reply = self.reply(request).await;
        let edns = edns_for(request);
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative = reply.authoritative;
        metadata.recursion_available = reply.recursion_available;
        metadata.authentic_data = reply.authentic;
        metadata.truncation = reply.truncated;
        let response =
            builder.build(metadata, reply.answers.iter(), reply.authorities.iter(), [], reply.additionals.iter());
        let sent: Result<ResponseInfo, NetError> = handle.send_response(response).await;
        sent.unwrap_or_else(|error| {
            tracing::debug!(%error, "an answer could not be sent");
            failed(request)
        })
    }
}

/// What is reported where nothing could be sent.
fn failed(request: &Request) -> ResponseInfo {
    let mut metadata = Metadata::new(request.metadata.id, MessageType::Response, request.metadata.op_code);
    metadata.response_code = ResponseCode::ServFail;
    Header { metadata, counts: HeaderCounts::default() }.into()
}
