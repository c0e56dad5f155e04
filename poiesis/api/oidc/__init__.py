"""Tokens of OpenID providers: this API as a resource server of any number of issuers (docs/adr/0012).

    settings    what the site configures for an issuer
    jwt         a JSON Web Token taken apart, without trust
    claims      who a set of claims stands for
    provider    requests to a provider: keys, introspection, UserInfo
    code_flow   logins in a browser: authorization code with PKCE, refresh
    verifier    all of it together: from a token to a `User`

Imported only where issuers are configured.
"""
