# What is random in Ruby, a line each: its name and a value.
require "openssl"
require "securerandom"
require "webrick"

SOURCES = {
  "SecureRandom" => -> { SecureRandom.hex(8) },
  "Random.new" => -> { Random.new.rand },
  "OpenSSL::Random" => -> { OpenSSL::Random.random_bytes(8).unpack1("H*") },
  "Kernel#rand" => -> { rand },
  "String#hash" => -> { "a text".hash },
}
server = WEBrick::HTTPServer.new(Port: 8000, BindAddress: "127.0.0.1", AccessLog: [])
server.mount_proc("/") do |_, response|
  response.body = SOURCES.map { |name, source| "#{name}\t#{source.call}\n" }.join
end
server.start
