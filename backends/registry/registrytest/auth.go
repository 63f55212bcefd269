package registrytest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
)

// errHeader stands for the exception that a header of another form raises in
// the server: its view answers 500.
var errHeader = errors.New("header of another form")

type credential struct {
	scheme, kind, user, stamp, signature string
}

// parseAuth reads a header as the server's _parse_header does, with its exceptions.
func parseAuth(header string) (credential, error) {
	scheme, content, ok := strings.Cut(header, " ")
	if !ok || strings.Contains(content, " ") {
		return credential{}, errHeader
	}
	values := map[string]string{}
	for entry := range strings.SplitSeq(content, ",") {
		k, v, ok := strings.Cut(entry, "=")
		if !ok {
			return credential{}, errHeader
		}
		values[k] = v
	}
	c := credential{scheme: scheme, signature: values["Signature"]}
	cred, ok := values["Credential"]
	if !ok {
		return c, nil
	}
	parts := strings.Split(cred, "/")
	if len(parts) != 3 {
		return credential{}, errHeader
	}
	user, err := base64.StdEncoding.DecodeString(parts[1])
	if err != nil {
		return credential{}, errHeader
	}
	c.kind, c.user, c.stamp = parts[0], string(user), parts[2]
	return c, nil
}

func (s *Server) user(name string) (User, error) {
	for _, u := range s.opt.Users {
		if u.Name == name {
			return u, nil
		}
	}
	return User{}, errNoUser
}

func (s *Server) userByToken(token string) (User, bool) {
	for _, u := range s.opt.Users {
		if u.Token != "" && u.Token == token {
			return u, true
		}
	}
	return User{}, false
}

// valid is the server's validate_request: the hour is compared with no tolerance.
func (s *Server) valid(c credential, kind, coll, name, tag string) bool {
	stamp := s.opt.Now().UTC().Format("20060102T15Z")
	u, err := s.user(c.user)
	if err != nil || c.scheme != "SREGISTRY-HMAC-SHA256" || c.kind != kind || c.stamp != stamp || c.signature == "" {
		return false
	}
	m := hmac.New(sha256.New, []byte(u.Token))
	m.Write([]byte(kind + "|" + coll + "|" + stamp + "|" + name + "|" + tag + "|"))
	return hmac.Equal([]byte(hex.EncodeToString(m.Sum(nil))), []byte(c.signature))
}

func (s *Server) mayPull(c credential, coll *collection) bool {
	u, err := s.user(c.user)
	return err == nil && (u.Superuser || slices.Contains(coll.owners, u.Name) || slices.Contains(coll.viewers, u.Name))
}

func (s *Server) mayPush(c credential, coll *collection) bool {
	u, err := s.user(c.user)
	switch {
	case err != nil:
		return false
	case u.Superuser:
		return true
	case coll == nil:
		return !s.opt.NoUserCollections
	}
	return slices.Contains(coll.owners, u.Name)
}
