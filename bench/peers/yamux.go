package main

import (
	"io"
	"net"

	"github.com/hashicorp/yamux"
)

type yamuxSession struct{ *yamux.Session }

func (s yamuxSession) open() (stream, error)   { return s.OpenStream() }
func (s yamuxSession) accept() (stream, error) { return s.AcceptStream() }

// Registers HashiCorp's yamux.
func init() {
	config := yamux.DefaultConfig()
	// It would log the end of every session.
	config.LogOutput = io.Discard
	muxers["yamux"] = muxer{
		client: func(conn net.Conn) (session, error) {
			s, err := yamux.Client(conn, config)
			return yamuxSession{s}, err
		},
		server: func(conn net.Conn) (session, error) {
			s, err := yamux.Server(conn, config)
			return yamuxSession{s}, err
		},
	}
}
