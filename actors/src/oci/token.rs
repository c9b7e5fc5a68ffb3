//! Tokens for a repository, from the place that a registry's challenge names. Keeps none.
//!
//! Protocol: distribution's "Token Authentication Specification" (GET, by password or as nobody) and "OAuth2 Token
//! Authentication" (POST, by a refresh token, which is what docker calls an identity token).

use super::credentials::Login;
use super::session::{ANSWER_DEADLINE, RequestError, basic, secret, successful, whole};
use http_auth::ChallengeRef;
use http_auth::parser::ChallengeParser;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Url};
use serde::Deserialize;

/// The longest answer with a token in it, in bytes. Azure's tokens, of the longest, take some 4 KiB.
const ANSWER_MAX: usize = 1 << 20;
/// Who we are, where OAuth wants to know.
const CLIENT: &str = "banger";

/// What a registry wants for a proof.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer(Bearer),
}

/// A token from elsewhere.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bearer {
    realm: String,
    service: Option<String>,
}

/// Reads `WWW-Authenticate` headers; what is neither of ours is left out.
pub(super) fn challenges<'a>(headers: impl Iterator<Item = &'a str>) -> Vec<Challenge> {
    headers.flat_map(ChallengeParser::new).filter_map(|parsed| challenge(&parsed.ok()?)).collect()
}

fn challenge(parsed: &ChallengeRef<'_>) -> Option<Challenge> {
    let parameter = |name: &str| {
        let found = parsed.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.to_unescaped())
    };
    match parsed.scheme {
        scheme if scheme.eq_ignore_ascii_case("basic") => Some(Challenge::Basic),
        scheme if scheme.eq_ignore_ascii_case("bearer") => {
            Some(Challenge::Bearer(Bearer { realm: parameter("realm")?, service: parameter("service") }))
        }
        _ => None,
    }
}

/// Either name, or both (the specification: "for compatibility with OAuth 2.0").
#[derive(Deserialize)]
struct Granted {
    token: Option<String>,
    access_token: Option<String>,
}

/// Gets a token to pull from `repository`, as a header. `secure` where the registry itself is spoken to by TLS: then no login
/// leaves this host without.
pub(super) async fn fetch_token(
    http: &Client,
    login: &Login,
    bearer: &Bearer,
    repository: &str,
    secure: bool,
) -> Result<HeaderValue, RequestError> {
    let realm = realm(bearer, secure)?;
    let scope = format!("repository:{repository}:pull");
    let mut fields = vec![("scope", scope.as_str())];
    fields.extend(bearer.service.as_deref().map(|service| ("service", service)));
    let request = match login {
        Login::IdentityToken(token) => {
            fields.extend([("grant_type", "refresh_token"), ("client_id", CLIENT), ("refresh_token", token.as_str())]);
            http.post(realm.clone())
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form(&realm, &fields))
        }
        Login::Anonymous | Login::Password { .. } => {
            let mut url = realm.clone();
            url.query_pairs_mut().extend_pairs(&fields);
            let proof = match login {
                Login::Password { user, password } => basic(user, password),
                Login::Anonymous | Login::IdentityToken(_) => None,
            };
            proof.into_iter().fold(http.get(url), |request, proof| request.header(AUTHORIZATION, proof))
        }
    };
    let response = request.timeout(ANSWER_DEADLINE).send().await.map_err(RequestError::Transport)?;
    let answer = whole(successful(response).await?, ANSWER_MAX).await?;
    let granted: Option<Granted> = serde_json::from_slice(&answer).ok();
    let token = granted.and_then(|granted| granted.token.or(granted.access_token)).filter(|token| !token.is_empty());
    let header = token.and_then(|token| secret(&format!("Bearer {token}")));
    header.ok_or_else(|| RequestError::Token { realm: bearer.realm.clone() })
}

fn realm(bearer: &Bearer, secure: bool) -> Result<Url, RequestError> {
    let refused = |why| RequestError::Realm { realm: bearer.realm.chars().take(200).collect(), why };
    let url = Url::parse(&bearer.realm).map_err(|_| refused("is no URL"))?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if !secure => Ok(url),
        "http" => Err(refused("speaks no TLS, while the registry does")),
        _ => Err(refused("is no place to ask by HTTP")),
    }
}

/// Fields as a form's body: what a URL would have after its `?`.
fn form(realm: &Url, fields: &[(&str, &str)]) -> String {
    let mut scratch = realm.clone();
    scratch.query_pairs_mut().clear().extend_pairs(fields);
    scratch.query().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str) -> Bearer {
        Bearer { realm: realm.to_owned(), service: Some("s".to_owned()) }
    }

    #[test]
    fn challenges_are_read_as_they_are_written() {
        let headers = [
            "Basic realm=\"x\", bearer Realm=\"https://auth/token?a=1\",service=\"s\",scope=\"y\"",
            "Digest realm=\"x\"",
            "Bearer service=\"nowhere\"",
            "\"",
        ];
        let expected = [Challenge::Basic, Challenge::Bearer(bearer("https://auth/token?a=1"))];
        assert_eq!(challenges(headers.into_iter()), expected);
    }

    #[test]
    fn a_login_leaves_by_tls_only_where_the_registry_speaks_it() {
        assert!(realm(&bearer("https://a/t"), true).is_ok() && realm(&bearer("http://a/t"), false).is_ok());
        for (text, secure) in [("http://a/t", true), ("file:///etc/passwd", false), ("token", false)] {
            let error = realm(&bearer(text), secure).unwrap_err();
            assert!(matches!(error, RequestError::Realm { .. }), "{text}");
        }
    }

    #[test]
    fn a_form_keeps_what_a_token_may_contain() {
        let url = Url::parse("https://a/t?x=1").unwrap();
        assert_eq!(form(&url, &[("a", "b c&d=e+/"), ("f", "")]), "a=b+c%26d%3De%2B%2F&f=");
    }
}
