package secrets_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/sregistry/sregistry-fs/secrets"
)

const canary = "canary-7f3a"

type holder struct {
	Name   string
	Token  secrets.Secret
	hidden secrets.Secret
	Ptr    *secrets.Secret
}

// A secret must not come out of anything that prints values, in plain or in
// an encoding that %x, %q or base64 would produce.
func TestSecretIsNeverShown(t *testing.T) {
	s := secrets.NewSecret(canary)
	h := holder{Name: "n", Token: s, hidden: s, Ptr: &s}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%c", "%t", "%p", "%10.3s", "%T"} {
		for _, v := range []any{s, &s, h, &h, []secrets.Secret{s}, map[string]secrets.Secret{"k": s}, struct{ s any }{s}} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
	}
	fmt.Fprintln(&out, s, h, &h)
	fmt.Fprintln(&out, fmt.Errorf("login with %v: %w", s, errors.New("no")))
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(handler).Info("x", "token", s, "holder", h, "ptr", &s, "group", slog.GroupValue(slog.Any("in", s)))
	}
	for _, v := range []any{s, h, map[string]any{"a": s}, []any{&s}} {
		text, err := json.MarshalIndent(v, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		out.Write(text)
	}
	text, err := s.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	out.Write(text)

	shown := out.String()
	for _, form := range []string{canary, fmt.Sprintf("%x", canary), fmt.Sprintf("%X", canary), fmt.Sprintf("% x", canary)} {
		if strings.Contains(shown, form) {
			t.Errorf("output contains %q:\n%s", form, shown)
		}
	}
	if n := strings.Count(shown, "[redacted]"); n < 40 {
		t.Errorf("[redacted] appears only %d times: the test looks at too little", n)
	}
}

func TestSecretReveal(t *testing.T) {
	if got := secrets.NewSecret(canary).Reveal(); got != canary {
		t.Errorf("Reveal() = %q", got)
	}
	var zero secrets.Secret
	if !zero.IsZero() || !secrets.NewSecret("").IsZero() || zero.Reveal() != "" {
		t.Error("the zero Secret has a value")
	}
	if secrets.NewSecret("x").IsZero() {
		t.Error("a Secret with a value is zero")
	}
	if got := fmt.Sprint(zero); got != "[redacted]" {
		t.Errorf("zero Secret prints %q: whether one is set is nobody's business", got)
	}
}
