package backends

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"
	"time"
)

func TestErrorText(t *testing.T) {
	ref := Ref{"vsoch", "hello", "1"}
	inner := &Error{Op: "open", Ref: ref, Kind: NotFound, Err: errors.New("status 404")}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&Error{Op: "stat", Ref: ref, Kind: NotFound}, "stat vsoch/hello:1: not found"},
		{&Error{Op: "stat", Ref: ref, Kind: Denied, Err: errors.New("status 403")}, "stat vsoch/hello:1: permission denied: status 403"},
		{&Error{Op: "list", Kind: Other, Err: errors.New("odd")}, "list: odd"},
		{inner, "open vsoch/hello:1: not found: status 404"},
		{&Error{Op: "pull", Ref: ref, Kind: NotFound, Err: inner}, "pull vsoch/hello:1: not found: status 404"},
		{&Error{Op: "read", Kind: Denied, Err: os.ErrPermission}, "read: permission denied"},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}

func TestKindOf(t *testing.T) {
	for _, kind := range Kinds() {
		if kind.Error() == "" {
			t.Errorf("kind %d has no words", kind)
		}
		err := fmt.Errorf("x: %w", &Error{Op: "x", Kind: kind, Err: context.Canceled})
		if !errors.Is(err, kind) || !errors.Is(err, context.Canceled) {
			t.Errorf("%v hides its kind or its cause", err)
		}
		if kind != Other && KindOf(err) != kind {
			t.Errorf("KindOf(%v) = %v", err, KindOf(err))
		}
	}
	for err, want := range map[error]Kind{
		context.DeadlineExceeded:                       Timeout,
		fs.ErrNotExist:                                 NotFound,
		fs.ErrPermission:                               Denied,
		errors.New("permission denied"):                Other, // never from a text
		&Error{Kind: Other, Err: fs.ErrExist}:          Exists,
		&Error{Kind: Invalid, Err: fs.ErrNotExist}:     Invalid,
		fmt.Errorf("%w", &Error{Op: "x", Kind: Quota}): Quota,
	} {
		if got := KindOf(err); got != want {
			t.Errorf("KindOf(%v) = %v, want %v", err, got, want)
		}
	}
}

func TestHintAndAfter(t *testing.T) {
	inner := &Error{Op: "open", Hint: "inner", After: time.Hour}
	err := fmt.Errorf("x: %w", &Error{Op: "pull", After: time.Second, Err: inner})
	if got := HintOf(err); got != "inner" {
		t.Errorf("hint %q", got)
	}
	if got := HintOf(&Error{Op: "push", Hint: "outer", Err: err}); got != "outer" {
		t.Errorf("hint %q", got)
	}
	if got := RetryAfter(err); got != time.Hour {
		t.Errorf("after %v", got)
	}
}
