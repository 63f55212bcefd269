package registry

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/secrets"
)

// hourLayout is the form of the hour that a signature is good for. The
// server compares it with its own UTC hour and allows no other.
const hourLayout = "20060102T15Z"

// credentials are a user name and a token. They sign; the token itself is only
// sent where registry.showToken allows it.
type credentials struct {
	user  string
	token secrets.Secret
}

// check tells why these credentials cannot sign, as an error of kind Denied.
func (c credentials) check(op string, ref backends.Ref) error {
	_, user, token, _ := options()
	denied := func(why, hint string) error {
		return &backends.Error{Op: op, Ref: ref, Kind: backends.Denied, Err: errors.New(why), Hint: hint}
	}
	switch {
	case c.token.IsZero():
		return denied("no token", "set "+token.Env+" and "+user.Env+", or paste the registry's token page into ~/.sregistry")
	case c.user == "":
		return denied("no user name", "set "+user.Env)
	case strings.Contains(base64.StdEncoding.EncodeToString([]byte(c.user)), "/"):
		return denied("this user name can never authenticate: the registry cannot read its encoding", "ask the registry's administrator for another login name")
	}
	return nil
}

// sign gives the Authorization header for one kind of request (pull, push,
// upload, delete) on one image in one UTC hour.
func (c credentials) sign(kind, collection, name, tag string, hour time.Time) string {
	stamp := hour.UTC().Format(hourLayout)
	m := hmac.New(sha256.New, []byte(c.token.Reveal()))
	m.Write([]byte(kind + "|" + collection + "|" + stamp + "|" + name + "|" + tag + "|"))
	return "SREGISTRY-HMAC-SHA256 Credential=" + kind + "/" + base64.StdEncoding.EncodeToString([]byte(c.user)) + "/" + stamp +
		",Signature=" + hex.EncodeToString(m.Sum(nil))
}

// signed calls do with a header for the present hour. If the registry refuses
// and its own clock shows another hour, do is called once more for that one.
// do must be harmless to repeat after a refusal.
func (b *registry) signed(op string, ref backends.Ref, kind, name string, do func(auth string) error) error {
	if err := b.cred.check(op, ref); err != nil {
		return err
	}
	hour := b.serverNow()
	err := do(b.cred.sign(kind, ref.Collection, name, ref.Tag, hour))
	if !b.otherHour(err, hour) {
		return err
	}
	return do(b.cred.sign(kind, ref.Collection, name, ref.Tag, b.serverNow()))
}

// serverNow is the registry's time, as far as it has shown it.
func (b *registry) serverNow() time.Time {
	return b.now().Add(time.Duration(b.offset.Load()))
}

// otherHour reports whether err is a refusal by a server whose hour is not
// the signed one, and remembers that server's time.
func (b *registry) otherHour(err error, signed time.Time) bool {
	var r *reply
	if !errors.As(err, &r) || r.date.IsZero() || !r.refused() {
		return false
	}
	if r.date.UTC().Format(hourLayout) == signed.UTC().Format(hourLayout) {
		return false
	}
	b.offset.Store(int64(r.date.Sub(b.now())))
	return true
}
