// A real OpenID provider for tests: `oidc-provider` from npm with a few users and clients. It runs as
//   node oidc_provider.mjs MODULE CONFIGURATION
// MODULE: path of oidc-provider's index.js. CONFIGURATION: JSON file with issuer, host, port, resource and jwks, and pem, a file with key and
// certificate, for TLS; a restart with other keys on the same port is a rotation. Besides the protocol it answers two requests of tests: PUT /test/accounts/SUB replaces the claims of a user, and the grant
// urn:poiesis:test gives a token for any user without a browser. Consent and login are the provider's development pages: any name is accepted.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { pathToFileURL } from 'node:url';

const [module, file] = process.argv.slice(2);
const { Provider } = await import(pathToFileURL(module));
const { issuer, host, port, pem, resource, jwks, redirects, ttl } = JSON.parse(readFileSync(file));

const DEVICE = 'urn:ietf:params:oauth:grant-type:device_code';
const TEST = 'urn:poiesis:test';
const SCOPES = 'openid profile email groups offline_access tes';
const accounts = new Map(Object.entries({
  ada: { groups: ['imaging'], email: 'ada@example.org', email_verified: true },
  bob: { groups: ['genomics'] },
  root: { groups: ['tes-admins'] },
}));
const claimsOf = (sub) => ({ preferred_username: sub, groups: [], ...accounts.get(sub) });
const findAccount = (_, sub) => ({ accountId: sub, claims: () => ({ sub, ...claimsOf(sub) }) });
const publicClient = (client_id) => ({
  client_id, grant_types: [DEVICE, 'refresh_token'], response_types: [], redirect_uris: [],
  token_endpoint_auth_method: 'none', application_type: 'native', scope: SCOPES,
});

const provider = new Provider(issuer, {
  jwks,
  clients: [
    publicClient('cli'),
    publicClient('cli-opaque'),
    {
      client_id: 'dashboard', client_secret: 'dashboard-secret', grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'], redirect_uris: redirects, application_type: 'native', scope: SCOPES,
    },
    { client_id: 'poiesis', client_secret: 'poiesis-secret', grant_types: [], response_types: [], redirect_uris: [] },
    {
      client_id: 'test', client_secret: 'test-secret', grant_types: [TEST, 'client_credentials'], response_types: [], redirect_uris: [], scope: SCOPES,
    },
  ],
  clientDefaults: { id_token_signed_response_alg: jwks.keys[0].alg },
  cookies: { keys: ['only for tests'] },
  scopes: SCOPES.split(' '),
  claims: { openid: ['sub'], profile: ['preferred_username'], email: ['email', 'email_verified'], groups: ['groups', 'realm_access', 'eduperson_entitlement', 'ga4gh_passport_v1'] },
  findAccount,
  extraTokenClaims: (_, token) => (token.accountId ? claimsOf(token.accountId) : undefined),
  issueRefreshToken: (_, client, code) => client.grantTypeAllowed('refresh_token') && code.scopes.has('offline_access'),
  rotateRefreshToken: true,
  ttl: { AccessToken: ttl, ClientCredentials: ttl, DeviceCode: 120, Grant: 3600, IdToken: 3600, Interaction: 600, RefreshToken: 3600, Session: 3600 },
  features: {
    deviceFlow: { enabled: true },
    introspection: { enabled: true, allowedPolicy: (_, client) => client.clientId === 'poiesis' },
    revocation: { enabled: true, allowedPolicy: () => true },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: (_, client) => (client.clientId.endsWith('-opaque') ? undefined : resource),
      useGrantedResource: () => true,
      getResourceServerInfo: (_, indicator) => ({
        scope: 'openid profile email groups offline_access tes', audience: indicator, accessTokenFormat: 'jwt', jwt: { sign: { alg: jwks.keys[0].alg } },
      }),
    },
  },
});
provider.on('server_error', (_, error) => console.error(error));

// A token of a user without a browser; `opaque` in `resource` asks for one without a resource, which is a reference to the provider's store.
provider.registerGrantType(TEST, async (ctx) => {
  const { client, params } = ctx.oidc;
  ctx.oidc.entity('Account', findAccount(ctx, params.username));
  const scope = params.scope || 'openid groups tes';
  const grant = new provider.Grant({ accountId: params.username, clientId: client.clientId });
  grant.addOIDCScope(scope);
  const token = new provider.AccessToken({ accountId: params.username, client, gty: TEST, scope, claims: {} });
  if (params.audience !== 'opaque') {
    const target = params.audience || resource;
    grant.addResourceScope(target, scope);
    token.resourceServer = new provider.ResourceServer(target, {
      scope, audience: target, accessTokenFormat: 'jwt', jwt: { sign: { alg: jwks.keys[0].alg } },
    });
  }
  token.grantId = await grant.save();
  ctx.oidc.entity('AccessToken', token);
  const value = await token.save();
  ctx.body = { access_token: value, expires_in: token.expiration, scope, token_type: token.tokenType };
}, ['username', 'scope', 'audience']);

const answer = provider.callback();
function serve(request, response) {
  const account = request.method === 'PUT' && request.url.match(/^\/test\/accounts\/(.+)$/);
  if (!account) {
    answer(request, response);
    return;
  }
  let body = '';
  request.on('data', (chunk) => { body += chunk; });
  request.on('end', () => {
    accounts.set(decodeURIComponent(account[1]), JSON.parse(body));
    response.writeHead(204).end();
  });
}
const identity = pem && readFileSync(pem);
(pem ? createTlsServer({ key: identity, cert: identity }, serve) : createServer(serve)).listen(port, host);
